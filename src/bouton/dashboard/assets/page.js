"use strict";
// Draws the charts from the JSON in the page. A single run has a colour per metric, several runs one per arm.
(() => {
  const { runs, sections } = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#6A51A3", "#7A7A7A"];
  const DASHES = ["", "5 3", "2 3", "8 3 2 3"];
  const W = 460, H = 210, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24;
  const arms = [...new Set(runs.map((run) => run.arm))];
  const several = runs.length > 1;
  const shown = runs.map(() => true);
  const colourOf = (run, metric) => COLOURS[(several ? arms.indexOf(runs[run].arm) : metric) % COLOURS.length];

  const make = (tag, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (parent) parent.appendChild(element);
    return element;
  };

  const text = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e9) return (value / 1e9).toPrecision(3) + "G";
    if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
    if (size >= 1e4) return (value / 1e3).toPrecision(3) + "k";
    if (size < 1e-3) return value.toExponential(1);
    return String(Number(value.toPrecision(4)));
  };

  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
    return found;
  };

  const linesOf = (panel) => {
    const lines = [];
    runs.forEach((run, index) => panel.metrics.forEach((metric, m) => {
      const series = run.series[metric];
      if (series && shown[index]) {
        lines.push({ steps: series[0], values: series[1], colour: colourOf(index, m),
                     dash: several ? DASHES[m % DASHES.length] : "",
                     name: several ? `${run.arm}, seed ${run.seed}` + (panel.metrics.length > 1 ? `, ${metric}` : "")
                                   : metric });
      }
    }));
    return lines;
  };

  const legend = (figure, panel) => {
    if (!several && panel.metrics.length < 2) return;
    const box = document.createElement("div");
    box.className = "legend";
    const entries = several
      ? (panel.metrics.length > 1 ? panel.metrics.map((m, i) => [m, "var(--muted)", i]) : [])
      : panel.metrics.map((m, i) => [m, COLOURS[i % COLOURS.length], 0]);
    for (const [name, colour, dash] of entries) {
      const entry = document.createElement("span"), line = document.createElement("i");
      line.style.borderTopColor = colour;
      line.style.borderTopStyle = DASHES[dash % DASHES.length] ? "dashed" : "solid";
      entry.append(line, name);
      box.append(entry);
    }
    figure.append(box);
  };

  const draw = (figure) => {
    const panel = sections[figure.dataset.section].panels[figure.dataset.panel];
    figure.querySelectorAll("svg, .legend, .tip").forEach((old) => old.remove());
    const lines = linesOf(panel);
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": panel.title });
    figure.append(svg);
    legend(figure, panel);
    if (!lines.length) {
      make("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, svg).textContent = "no run is shown";
      return;
    }
    let left = Infinity, right = -Infinity, low = Infinity, high = -Infinity;
    for (const line of lines) {
      for (const step of line.steps) { left = Math.min(left, step); right = Math.max(right, step); }
      for (const value of line.values) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    if (left === right) { left -= 1; right += 1; }
    const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    low -= pad; high += pad;
    const x = (step) => LEFT + (step - left) / (right - left) * (W - LEFT - RIGHT);
    const y = (value) => TOP + (high - value) / (high - low) * (H - TOP - BOTTOM);
    for (const value of ticks(low, high, 5)) {
      make("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }, svg);
      make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = text(value);
    }
    for (const step of ticks(left, right, 6)) {
      make("text", { x: x(step), y: H - 6, "text-anchor": "middle" }, svg).textContent = text(step);
    }
    for (const line of lines) {
      const points = line.steps.map((step, i) => `${x(step).toFixed(1)},${y(line.values[i]).toFixed(1)}`);
      make("polyline", { points: points.join(" "), fill: "none", stroke: line.colour, "stroke-width": 1.6,
                         "stroke-dasharray": line.dash, "stroke-linejoin": "round" }, svg);
      if (points.length < 30) {
        for (const point of points) {
          const [cx, cy] = point.split(",");
          make("circle", { cx, cy, r: 2.2, fill: line.colour }, svg);
        }
      }
    }
    follow(figure, svg, lines, { left, right, x });
  };

  // The values nearest to the pointer, in a box beside it.
  const follow = (figure, svg, lines, scale) => {
    const cursor = make("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" }, svg);
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * W;
      const wanted = scale.left + (at - LEFT) / (W - LEFT - RIGHT) * (scale.right - scale.left);
      let step = null;
      for (const line of lines) {
        for (const s of line.steps) if (step === null || Math.abs(s - wanted) < Math.abs(step - wanted)) step = s;
      }
      const rows = lines.flatMap((line) => {
        const i = line.steps.indexOf(step);
        return i < 0 ? [] : [[line, line.values[i]]];
      });
      cursor.setAttribute("x1", scale.x(step));
      cursor.setAttribute("x2", scale.x(step));
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(`step ${step}`, ...rows.slice(0, 12).map(([line, value]) => {
        const row = document.createElement("div");
        row.style.color = line.colour;
        row.textContent = `${line.name}: ${text(value)}`;
        return row;
      }));
      tip.hidden = false;
      const pixel = scale.x(step) / W * box.width;
      tip.style.top = "3.2rem";
      tip.style.left = pixel < box.width / 2 ? `${pixel + 24}px` : "auto";
      tip.style.right = pixel < box.width / 2 ? "auto" : `${box.width - pixel + 24}px`;
    });
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      cursor.setAttribute("visibility", "hidden");
    });
  };

  const charts = document.querySelectorAll("figure.chart");
  const drawAll = () => charts.forEach(draw);
  document.querySelectorAll("input[data-run]").forEach((box) => {
    const index = Number(box.dataset.run);
    if (several) box.nextElementSibling.style.background = colourOf(index, 0);
    else box.hidden = box.nextElementSibling.hidden = true;
    box.addEventListener("change", () => { shown[index] = box.checked; drawAll(); });
  });
  document.querySelectorAll("figure.media input").forEach((slider) => slider.addEventListener("input", () => {
    const images = slider.parentElement.querySelectorAll("img");
    images.forEach((image, i) => { image.hidden = i !== Number(slider.value); });
    slider.parentElement.querySelector("span").textContent = images[slider.value].dataset.step;
  }));
  drawAll();
  document.body.dataset.drawn = document.querySelectorAll("figure.chart polyline").length;
})();
