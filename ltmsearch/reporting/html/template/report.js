const boxes = Object.keys(figures).map((id) => document.getElementById(id));
const narrow = window.matchMedia("(max-width: 40rem)");
const touched = window.matchMedia("(pointer: coarse)");

for (const box of boxes) {
  const { data, layout } = figures[box.id];
  const config = { ...settings, responsive: true };
  if (touched.matches) {  // a finger scrolls the page, and without a pointer the buttons would never hide
    layout.dragmode = false;
    config.displayModeBar = false;
  }
  if (narrow.matches && !box.style.minWidth) fitToNarrow(data, layout);
  Plotly.newPlot(box, data, layout, config).then(() => {
    // Screen readers get the label of the box and the table below instead of the numbers along the axes.
    for (const drawing of box.querySelectorAll("svg.main-svg")) drawing.setAttribute("aria-hidden", "true");
  });
}

function fitToNarrow(data, layout) {
  layout.font = { ...layout.font, size: 12 };
  layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 55), r: 12 };
  for (const trace of data) {  // long labels beside marks would cover each other; touching a mark shows them
    if (Array.isArray(trace.text) && trace.mode === "markers+text") {
      const short = trace.text.map((words) => words.replace(", recommended", ""));
      trace.text = short.map((words) => (words.length > 4 ? "" : words));
    }
  }
  for (const words of layout.annotations ?? []) {
    words.font = { ...words.font, size: 11 };
    words.bgcolor = "rgba(255, 255, 255, 0.5)";  // there is less space beside the marks
    if ((words.xref ?? "x") === "x" && words.xanchor === "left") Object.assign(words, { xanchor: "right", align: "right" });
  }
  for (const name of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
    const title = layout[name].title;
    if (title?.text) title.text = title.text.replace(" (", "<br>(");
  }
}

// Paper has another width than the window, and folded parts cannot be opened on it.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
  for (const box of boxes) {
    const least = parseFloat(box.style.minWidth) || 0, width = box.closest(".beside") ? 335 : 680;
    Plotly.relayout(box, { width: Math.max(least, width), height: box.clientHeight });
    if (least > width) box.style.zoom = width / least;
  }
});
window.addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
  for (const box of boxes) {
    box.style.zoom = "";
    Plotly.relayout(box, { width: null, height: null, autosize: true });
  }
});
