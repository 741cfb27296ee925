"""From a DataFrame of results to a table or a figure; nothing here imports torch."""
