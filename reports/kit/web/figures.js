// Figures: the nearest point to the pointer is told, a click opens its runs; the arrow keys go from point to point.
const NEAR = 18;
const tip = element("div", {id: "tip", role: "tooltip", hidden: true});
document.body.append(tip);

function tellPoint(point, place) {
  const {line, at, value, low, high, n, runs} = point;
  const name = element("b", {}, line.label);
  name.style.setProperty("--own", isDark() ? onDark(line.color) : line.color);
  const said = [name];
  if (line.panel) said.push(element("span", {class: "count"}, line.panel));
  if (at !== null && at !== undefined) said.push(element("span", {}, `${line.at || "at"}: ${number(at)}`));
  const interval = low === null || high === null || low === high ? "" : ` [${number(low)}, ${number(high)}]`;
  said.push(element("span", {}, `${line.value || "value"}: ${number(value)}${interval}`));
  const about = [interval && line.interval ? `[ ] ${line.interval}` : "", n ? `n = ${n}` : ""].filter(Boolean).join(", ");
  if (about) said.push(element("span", {class: "count"}, about));
  if (runs.length) said.push(element("span", {class: "count"}, runs.length === 1 ? "click for its run" : `click for its ${runs.length} runs`));
  tip.replaceChildren(...said);
  tip.hidden = false;
  const {width, height} = tip.getBoundingClientRect(), edge = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(place.x + 14, edge - width - 6))}px`;
  tip.style.top = `${place.y + 16 + height > innerHeight ? Math.max(4, place.y - height - 12) : place.y + 16}px`;
}

for (const plot of document.querySelectorAll(".plot[data-figure]")) {
  const figure = DATA.figures[plot.dataset.figure], [width, height] = figure.size;
  const points = figure.lines.flatMap(line => line.points.map(([x, y, at, value, low, high, n, runs]) =>
    ({line, x, y, at, value, low, high, n, runs})));
  if (!points.length) continue;
  const ring = element("circle", {class: "ring", r: 6, visibility: "hidden"});
  const overlay = element("svg", {viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "application",
    "aria-label": `${points.length} points, told by the arrow keys`}, ring);
  plot.append(overlay);
  let current = null;
  const scale = () => overlay.getBoundingClientRect().width / width;
  const leave = () => { current = null; tip.hidden = true; ring.setAttribute("visibility", "hidden"); plot.classList.remove("open"); };
  const go = point => {
    current = point;
    const box = overlay.getBoundingClientRect();
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.setAttribute("visibility", "visible");
    plot.classList.toggle("open", point.runs.length > 0);
    tellPoint(point, {x: box.left + point.x * scale(), y: box.top + point.y * scale()});
  };
  const nearest = event => {
    const box = overlay.getBoundingClientRect(), k = scale(), x = (event.clientX - box.left) / k, y = (event.clientY - box.top) / k;
    let best = null, least = NEAR / k;
    for (const point of points) {
      const away = Math.hypot(point.x - x, point.y - y);
      if (away < least) [best, least] = [point, away];
    }
    return best;
  };
  const follow = event => {
    const point = nearest(event);
    if (point === null) leave(); else if (point !== current) go(point);
  };
  // A finger sees what it points at first, and opens it by a second tap.
  let finger = null;
  overlay.addEventListener("pointermove", follow);
  overlay.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") leave(); });
  overlay.addEventListener("pointerdown", event => { finger = event.pointerType === "mouse" ? null : current; });
  overlay.addEventListener("click", event => {
    const point = nearest(event), told = current;
    follow(event);
    if (point && point.runs.length && (event.pointerType === "mouse" || (finger === point && told === point))) openRuns(point.runs);
  });
  overlay.addEventListener("blur", leave);
  overlay.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (by) {
      event.preventDefault();
      go(points[(points.indexOf(current) + by + points.length) % points.length]);
    } else if (event.key === "Enter" && current?.runs.length) openRuns(current.runs);
    else if (event.key === "Escape") leave();
  });
  const save = element("button", {type: "button", class: "link", click: () => {
    const header = ["panel", "line", "at", "what", "value", "low", "high", "n", "runs"];
    const rows = points.map(p => [p.line.panel, p.line.label, p.at, p.line.value, p.value, p.low, p.high, p.n,
      p.runs.map(i => valueOf("run_id", i)).join(" ")]);
    download(plot.dataset.figure, [header, ...rows]);
  }}, "download the points as csv");
  plot.closest("section").querySelector(".files").append(" · ", save);
}
addEventListener("scroll", () => { tip.hidden = true; }, {passive: true, capture: true});
followAddress();
