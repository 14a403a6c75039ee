// Filters: the runs in view, and the rows of the summary in view.

const IMPOSSIBLE = "impossible"; // the target of a run that was refused for it
const possible = (target) => target === null || (target >= 0 && target <= 1);
const sparsityLabel = (target) => (target === null ? "dense" : possible(target) ? `${Number((100 * target).toPrecision(6))} %` : String(target));
const FILTERS = [
  { key: "task", label: "task", of: (run) => [run.task] },
  { key: "method", label: "method", of: (run) => [run.method], long: true },
  { key: "target", label: "sparsity", of: (run) => unique([...run.targets, possible(run.target) ? run.target : IMPOSSIBLE]), show: sparsityLabel },
  { key: "seed", label: "seed", of: (run) => [run.seed] },
  { key: "state", label: "state", of: (run) => [run.state] },
];
const chosen = Object.fromEntries(FILTERS.map((f) => [f.key, new Set(unique(runs.flatMap(f.of)))]));
let search = "";

function visible() {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = `${run.folder} ${run.method} ${run.reason ?? ""}`.toLowerCase();
    return FILTERS.every((f) => f.of(run).some((value) => chosen[f.key].has(value))) && words.every((word) => text.includes(word));
  });
}

function drawFilters() {
  for (const filter of FILTERS) {
    const values = [...chosen[filter.key]].sort((a, b) => (a === null ? -1 : b === null ? 1 : byValue(a, b)));
    const boxes = values.map((value) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.dataset.filter = filter.key;
      box.dataset.value = JSON.stringify(value);
      box.addEventListener("change", () => {
        chosen[filter.key][box.checked ? "add" : "delete"](value);
        draw();
      });
      return { value, box, label: element("label", { className: filter.long ? "long" : "" }, box, ` ${filter.show ? filter.show(value) : value ?? NONE}`) };
    });
    const all = (checked, text) =>
      element("button", {
        type: "button",
        textContent: text,
        onclick: () => {
          for (const { box } of boxes) box.checked = checked;
          chosen[filter.key] = new Set(checked ? values : []);
          draw();
        },
      });
    const legend = element("legend", {}, filter.label);
    if (values.length > 1) legend.append(" ", all(true, "all"), all(false, "none"));
    $("#filters").append(element("fieldset", {}, legend, element("div", { className: "options" }, ...boxes.map((b) => b.label))));
  }
  const box = element("input", { type: "search", placeholder: "folder, method or reason", ariaLabel: "search" });
  box.addEventListener("input", () => {
    search = box.value;
    draw();
  });
  $("#filters").append(element("fieldset", {}, element("legend", {}, "search"), box));
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
}

// A row is in view with its target and all of its runs. Where a filter hides some of its runs, the
// others are shown one by one.
function rowsInView(shown) {
  const ids = new Set(shown.map((run) => run.id));
  return rows.slice(0, data.groups).filter((row) => chosen.target.has(row.target)).flatMap((row) =>
    row.members.every((id) => ids.has(id)) ? [row] : row.parts.map((id) => rows[id]).filter((part) => ids.has(part.members[0])));
}
