// Figures are drawn when they come near the screen, and all of them before printing.
const TEMPLATE = { layout: {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: ["#0072B2", "#D55E00", "#009E73", "#CC79A7"],
  font: { family: "system-ui, sans-serif", size: 13 }, hoverlabel: { bgcolor: "#2b3440", font: { color: "#fff" } },
  xaxis: { gridcolor: "#ddd", linecolor: "#888", zerolinecolor: "#ddd", automargin: true, title: { standoff: 10 } },
  yaxis: { gridcolor: "#ddd", linecolor: "#888", zerolinecolor: "#ddd", automargin: true, title: { standoff: 10 } },
} };
const PAPER = 680; // pixels that a printed page is wide
const drawn = new Map();

function draw(place) {
  if (!drawn.has(place)) drawn.set(place, drawNow(place));
  return drawn.get(place);
}

async function drawNow(place) {
  try {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const narrow = place.clientWidth < 600;
    const layout = { ...figure.layout, template: TEMPLATE };
    const div = document.createElement("div");
    place.replaceChildren(div);
    const config = { displaylogo: false, responsive: true, displayModeBar: narrow ? false : "hover" };
    await Plotly.newPlot(div, { data: figure.data, layout, frames: figure.frames || [], config });
    if (narrow && Object.keys(figure.narrow).length) await Plotly.relayout(div, figure.narrow);
    place.style.minHeight = "";
  } catch (error) {
    place.textContent = "This figure cannot be drawn in this browser; the tables have its numbers.";
    throw error;
  }
}

if (matchMedia("(max-width: 900px)").matches) document.querySelector("nav details").open = false;

const places = [...document.querySelectorAll(".plot")];
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "600px" });
places.forEach((place) => near.observe(place));

addEventListener("beforeprint", () => {
  document.querySelectorAll("figure details").forEach((each) => { each.open = true; });
  for (const place of places) draw(place).then(() => Plotly.relayout(place.firstChild, { width: PAPER }));
});
addEventListener("afterprint", () => {
  for (const place of places) draw(place).then(() => Plotly.relayout(place.firstChild, { width: null, autosize: true }));
});
