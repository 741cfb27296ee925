// Tables of a report: sorted by a click on a header, filtered, with chosen columns, downloaded as they are shown.
const MANY = 6;

function compareKeys(x, y, descending) {
  // Numbers before text in either direction: a cell without a number is not the smallest one.
  if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
  const order = typeof x === "number" ? x - y : x.localeCompare(y);
  return descending ? -order : order;
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0], descending = header.getAttribute("aria-sort") === "ascending";
  const key = row => {
    const cell = row.cells[header.cellIndex];
    return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
  };
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...[...body.rows].sort((a, b) => compareKeys(key(a), key(b), descending)));
}

function columnMenu(titles, isShown, choose) {
  const boxes = titles.map((title, i) => i === 0 ? null : element("label", {}, element("input", {type: "checkbox", checked: isShown(i),
    change: event => choose(i, event.target.checked)}), " ", title));
  return element("details", {class: "menu"}, element("summary", {}, "Columns"), element("div", {}, ...boxes));
}

addEventListener("click", event => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

for (const table of document.querySelectorAll("main .scroll > table")) {
  if (!table.tHead) continue;
  const headers = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  for (const header of headers) header.firstElementChild.addEventListener("click", () => sortBy(header));
  const count = element("span", {class: "count", role: "status"});
  const filter = element("input", {type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", input: () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
  }});
  const choose = (i, shown) => {
    for (const row of table.rows) if (row.cells[i]) row.cells[i].hidden = !shown;
  };
  const menu = columnMenu(headers.map(header => header.textContent), () => true, choose);
  const save = element("button", {type: "button", class: "quiet", click: () => {
    const shown = [...table.rows].filter(row => !row.hidden);
    download(table.dataset.name ?? "table", shown.map(row => [...row.cells].filter(cell => !cell.hidden).map(cell => cell.textContent)));
  }}, "Download CSV");
  table.closest(".scroll").before(element("div", {class: "tools"}, rows.length > MANY ? filter : null,
    headers.length > 2 ? menu : null, save, count));
}

document.querySelector("header > p").after(element("p", {class: "note"}, "A click on a number or a point opens its runs."));

// A number is opened where it stands: the runs behind it.
for (const button of document.querySelectorAll("button[data-runs]")) {
  button.addEventListener("click", () => openRuns(button.dataset.runs.split(" ").map(Number)));
}
