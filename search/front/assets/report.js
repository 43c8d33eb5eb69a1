"use strict";
// Charts: drawn in the colours of the page, redrawn when those or the paper change; their points take the focus.
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const night = { "#222222": "#e8e8e8", "white": "#16181c", "#8a8a8a": "#a2a6ac", "#e8e8e8": "#33373e", "#3b3b3b": "#d4d4d4",
  "#0072b2": "#4ea5e0", "#009e73": "#2cc295", "#d55e00": "#f08a3c", "#7a7a7a": "#a9a9a9", "#a34400": "#ee8a4c",
  "#8f6b2f": "#d0a860", "#6b6b6b": "#b0b0b0", "#3f6f8f": "#7fb6d6", "#005a9c": "#5db4f5" };
const narrow = () => innerWidth < 700 && !printing;
const wanted = chart => {
  const text = chart.nextElementSibling.textContent;
  const lit = dark.matches && !printing ? text.replace(/"(#[0-9a-f]{6}|white)"/g, (all, shade) => `"${night[shade] ?? shade}"`)
    : text;
  const figure = JSON.parse(lit), layout = figure.layout;
  delete layout.title;
  layout.autosize = true;
  layout.margin = { ...layout.margin, t: Math.max(12, (layout.margin?.t ?? 0) - 40) };
  if (printing) { layout.width = 660; layout.autosize = false; }
  if (narrow() && !chart.closest(".wide")) {
    layout.font = { ...layout.font, size: 11 };
    layout.margin = { ...layout.margin, l: 48, r: 8 };
    layout.height = Math.min(layout.height ?? 420, 440);
    layout.annotations = (layout.annotations ?? []).filter(each => each.name === "axis" || /knee/.test(each.text))
      .map(each => each.name === "axis" ? each : { ...each, ax: 0, ay: 28, xanchor: "center" });
    layout.legend = { ...layout.legend, font: { size: 11 } };
  }
  return figure;
};
const plain = text => (text ?? "").replace(/<br>/g, ", ").replace(/<[^>]*>/g, "");
const reachable = chart => {
  const points = [];
  for (const path of chart.querySelectorAll(".scatterlayer path.point")) {
    const own = path.__data__, trace = path.parentNode.__data__?.[0]?.trace;
    if (!trace || trace.hoverinfo === "skip" || own?.i === undefined) continue;
    const text = chart.data[trace.index].text?.[own.i];
    if (!text) continue;
    path.setAttribute("role", "img");
    path.setAttribute("aria-label", plain(text));
    path.setAttribute("tabindex", points.length ? "-1" : "0");
    points.push({ path, curve: trace.index, point: own.i, x: path.getBoundingClientRect().x,
      trial: chart.data[trace.index].customdata?.[own.i]?.[0] });
  }
  points.sort((a, b) => a.x - b.x);
  points.forEach((each, at) => {
    each.path.setAttribute("tabindex", at ? "-1" : "0");
    each.path.onfocus = () => Plotly.Fx.hover(chart, [{ curveNumber: each.curve, pointNumber: each.point }]);
    each.path.onkeydown = event => {
      const last = points.length - 1;
      const to = { ArrowRight: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
      if (to !== undefined) {
        event.preventDefault();
        each.path.setAttribute("tabindex", "-1");
        points[to].path.setAttribute("tabindex", "0");
        points[to].path.focus();
      }
      const row = document.getElementById(`trial-${each.trial}`);
      if (event.key === "Enter" && row) { row.hidden = false; location.hash = row.id; row.querySelector("button")?.focus(); }
    };
  });
};
const charts = [...document.querySelectorAll(".chart")];
const draw = () => charts.map(chart => {
  const figure = wanted(chart);
  return Plotly.react(chart, figure.data, figure.layout, { responsive: true, displayModeBar: false }).then(() => {
    for (const svg of chart.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "false");
    reachable(chart);
  });
});
Promise.all(draw()).then(() => document.body.dataset.drawn = "yes");
for (const chart of charts) chart.on?.("plotly_relayout", () => reachable(chart));
dark.addEventListener("change", draw);
let wasNarrow = narrow();
addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); draw(); } });
addEventListener("beforeprint", () => {
  printing = true; draw(); for (const each of document.querySelectorAll("details")) each.open = true;
});
addEventListener("afterprint", () => { printing = false; draw(); });

// The table: sorted by a column, filtered, its commands copied.
for (const button of document.querySelectorAll("#trials th button")) button.onclick = () => {
  const head = button.parentElement, column = head.cellIndex, body = document.querySelector("#trials tbody");
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const last = value => value === "" || value === "nan";
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (last(x) || last(y)) return last(x) - last(y);
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  }).forEach(row => body.append(row));
};
const filters = document.querySelector(".filters");
if (filters) filters.onchange = () => {
  const kinds = [...filters.querySelectorAll("input:checked")].map(input => input.value);
  const scheme = filters.querySelector("select")?.value ?? "", rows = [...document.querySelectorAll("#trials tbody tr")];
  for (const row of rows) {
    const known = row.dataset.kinds.split(" ");
    row.hidden = !kinds.every(kind => known.includes(kind)) || Boolean(scheme) && row.dataset.scheme !== scheme;
  }
  filters.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} shown`;
};
document.addEventListener("click", event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const told = () => { button.textContent = "copied"; setTimeout(() => button.textContent = "copy", 2000); };
  const asked = () => prompt("The command:", button.title);
  navigator.clipboard ? navigator.clipboard.writeText(button.title).then(told, asked) : asked();
});
// Links to MLflow's pages: on the server that shows this page, or where `python -m search.ui` answers by itself.
if (location.protocol.startsWith("http")) for (const link of document.querySelectorAll("a.mlflow"))
  link.href = location.origin + "/" + new URL(link.href).hash;
