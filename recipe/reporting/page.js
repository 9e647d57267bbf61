"use strict";
// The page's charts, slider and tables. All text enters by textContent, so that no name can become markup.
(function () {
  const data = JSON.parse(document.getElementById("drawn").textContent);
  const COLOURS = ["#2a86a8", "#d1495b", "#5d9c79", "#d99a1c", "#8d62a8", "#7b8794", "#b0683a", "#2ca3a0"];
  const LEFT = 52, RIGHT = 16, TOP = 8, BOTTOM = 24;  // margins of a chart

  function make(name, attributes, children) {
    const node = document.createElement(name);
    return fill(node, attributes, children);
  }
  function draw(name, attributes, children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    return fill(node, attributes, children);
  }
  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    for (const child of children || []) node.append(child);
    return node;
  }
  function shown(value) {
    if (value === null || value === undefined) return "not finite";
    const size = Math.abs(value);
    if (value !== 0 && (size >= 1e7 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(5)));
  }
  function short(value) {  // of a tick
    const size = Math.abs(value);
    if (size >= 1e9) return Number((value / 1e9).toPrecision(4)) + "G";
    if (size >= 1e6) return Number((value / 1e6).toPrecision(4)) + "M";
    if (size >= 1e4) return Number((value / 1e3).toPrecision(4)) + "k";
    if (value !== 0 && size < 1e-3) return value.toExponential(0);
    return String(Number(value.toPrecision(4)));
  }

  // Positions between 0 and 1 of values, and the ticks of an axis.
  function scale(values, log, count) {
    let lo = Infinity, hi = -Infinity;
    for (const value of values) { if (value < lo) lo = value; if (value > hi) hi = value; }
    if (lo === hi) { const pad = Math.abs(lo) * 0.1 || 1; if (!log) { lo -= pad; hi += pad; } else { lo /= 2; hi *= 2; } }
    if (log) {
      const from = Math.log10(lo), to = Math.log10(hi);
      return { at: (value) => (Math.log10(value) - from) / (to - from), ticks: decades(lo, hi) };
    }
    const step = nice((hi - lo) / count), ticks = [];
    for (let index = Math.ceil(lo / step); index * step <= hi * (1 + 1e-12) + step * 1e-9; index++) {
      ticks.push(Number((index * step).toPrecision(12)));
    }
    return { at: (value) => (value - lo) / (hi - lo), ticks: ticks };
  }
  function nice(rough) {
    const base = Math.pow(10, Math.floor(Math.log10(rough)));
    return base * [1, 2, 5, 10].find((factor) => factor * base >= rough * (1 - 1e-9));
  }
  function decades(lo, hi) {
    const from = Math.floor(Math.log10(lo)), to = Math.ceil(Math.log10(hi));
    const every = Math.max(1, Math.ceil((to - from) / 6)), factors = to - from <= 2 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = from; power <= to; power += every) {
      for (const factor of factors) {
        const tick = Number((factor * Math.pow(10, power)).toPrecision(6));
        if (tick >= lo && tick <= hi) ticks.push(tick);
      }
    }
    return ticks.length > 1 ? ticks : [lo, hi];
  }

  // A chart of lines [{label, x, y}] with a cross-hair that says the values below the pointer.
  function chart(options) {
    const box = make("div", { class: options.wide ? "chart wide" : "chart" });
    const name = make("div", { class: "name" }, [options.name]);
    const value = make("div", { class: "value" });
    const place = make("div");
    box.append(name, place, value);
    if (options.lines.length > 1) box.append(legend(options.lines));
    box.redraw = function (log) { redraw(place, value, options, log); };
    return box;
  }
  function legend(lines) {
    const entries = lines.map((line, index) => {
      const key = make("i");
      key.style.background = COLOURS[index % COLOURS.length];
      return make("span", {}, [key, line.label]);
    });
    return make("div", { class: "legend" }, entries);
  }
  function redraw(place, value, options, wanted) {
    const all = options.lines.flatMap((line) => line.y).filter((y) => y !== null);
    const log = wanted && all.some((y) => y > 0);
    const usable = (y) => y !== null && (!log || y > 0);
    const lines = options.lines.map((line) => {
      const points = line.x.map((x, index) => [x, line.y[index]]).filter((point) => usable(point[1]));
      return { label: line.label, points: points };
    });
    const hidden = all.length - lines.reduce((sum, line) => sum + line.points.length, 0);
    const resting = options.resting + (hidden > 0 ? "; " + hidden + " values of 0 or below have no logarithm" : "") +
      (wanted && !log && all.length > 0 ? "; linear, since no value is above 0" : "");
    value.textContent = resting;
    place.replaceChildren();
    if (!lines.some((line) => line.points.length > 0)) {
      place.append(make("p", { class: "quiet" }, ["no finite values"]));
      return;
    }
    const width = options.wide ? 720 : 360, height = options.wide ? 300 : 200;
    const across = scale(lines.flatMap((line) => line.points.map((point) => point[0])), false, options.wide ? 9 : 5);
    const up = scale(lines.flatMap((line) => line.points.map((point) => point[1])), log, options.wide ? 6 : 4);
    const x = (given) => LEFT + across.at(given) * (width - LEFT - RIGHT);
    const y = (given) => height - BOTTOM - up.at(given) * (height - TOP - BOTTOM);
    const svg = draw("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": options.name });
    for (const tick of up.ticks) {
      svg.append(draw("path", { class: "axis", d: "M" + LEFT + " " + y(tick) + "H" + (width - RIGHT) }));
      svg.append(draw("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, [short(tick)]));
    }
    for (const tick of across.ticks) {
      svg.append(draw("text", { x: x(tick), y: height - 7, "text-anchor": "middle" }, [short(tick)]));
    }
    lines.forEach((line, index) => {
      const colour = COLOURS[index % COLOURS.length];
      const path = line.points.map((point, at) => (at ? "L" : "M") + x(point[0]).toFixed(1) + " " + y(point[1]).toFixed(1));
      svg.append(draw("path", { d: path.join(""), fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-linejoin": "round" }));
      if (options.dots || line.points.length === 1) {
        for (const point of line.points) svg.append(draw("circle", { cx: x(point[0]), cy: y(point[1]), r: 3, fill: colour }));
      }
    });
    hover(svg, value, resting, options, lines, x, y, width, height);
    place.append(svg);
  }
  function hover(svg, value, resting, options, lines, x, y, width, height) {
    const cross = draw("path", { class: "cross", d: "" });
    const dot = draw("circle", { r: 4, fill: "none", stroke: "currentColor", visibility: "hidden" });
    svg.append(cross, dot);
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const at = (event.clientX - frame.left) * width / frame.width;
      const level = (event.clientY - frame.top) * height / frame.height;
      let best = null, distance = Infinity;
      for (const line of lines) {
        for (const point of line.points) {
          const away = Math.abs(x(point[0]) - at) + (lines.length > 1 ? 0.5 * Math.abs(y(point[1]) - level) : 0);
          if (away < distance) { distance = away; best = [line, point]; }
        }
      }
      cross.setAttribute("d", "M" + x(best[1][0]) + " " + TOP + "V" + (height - BOTTOM));
      dot.setAttribute("cx", x(best[1][0]));
      dot.setAttribute("cy", y(best[1][1]));
      dot.setAttribute("visibility", "visible");
      const label = lines.length > 1 ? best[0].label + ": " : "";
      value.textContent = label + options.unit + " " + best[1][0] + ": " + shown(best[1][1]);
    });
    svg.addEventListener("pointerleave", () => {
      cross.setAttribute("d", "");
      dot.setAttribute("visibility", "hidden");
      value.textContent = resting;
    });
  }

  function curves() {
    const place = document.getElementById("charts");
    if (!place) return;
    const log = document.getElementById("log");
    const groups = new Map();
    for (const curve of data.curves) {
      const group = curve.tag.includes("/") ? curve.tag.split("/")[0] : "others";
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(curve);
    }
    const order = [...groups.keys()].sort((a, b) => (b === "loss") - (a === "loss") || (a < b ? -1 : 1));
    const drawn = [];
    order.forEach((group, index) => {
      const inner = make("div", { class: "charts" });
      const details = make("details", {}, [make("summary", {}, [group + " (" + groups.get(group).length + ")"]), inner]);
      const open = () => {
        if (!details.open || inner.childElementCount > 0) return;
        for (const curve of groups.get(group)) {
          const last = curve.y.length - 1;
          const resting = "last: " + shown(curve.y[last]) + " at batch " + curve.x[last];
          const lines = [{ label: curve.tag, x: curve.x, y: curve.y }];
          const box = chart({ name: curve.tag, lines: lines, unit: "batch", resting: resting });
          box.redraw(log.checked);
          drawn.push(box);
          inner.append(box);
        }
      };
      details.addEventListener("toggle", open);
      details.open = index === 0;
      place.append(details);
      open();
    });
    log.addEventListener("change", () => drawn.forEach((box) => box.redraw(log.checked)));
  }

  function grids() {
    const slider = document.getElementById("time");
    if (!slider) return;
    const kinds = [...new Set(data.grids.map((grid) => grid.kind))].sort((a, b) => (a === "raw") - (b === "raw") || (a < b ? -1 : 1));
    const times = [...new Set(data.grids.map((grid) => grid.nimg))].sort((a, b) => a - b);
    let kind = kinds[0];
    const image = document.getElementById("grid"), said = document.getElementById("grid-said");
    function show() {
      const nimg = times[Number(slider.value)];
      const grid = data.grids.find((each) => each.nimg === nimg && each.kind === kind);
      said.textContent = nimg.toLocaleString("en") + " images seen" + (grid ? "" : ": no grid of " + kind);
      image.hidden = !grid;
      if (grid) {
        image.src = "data:image/png;base64," + grid.png;
        image.alt = "samples by " + kind + " at " + nimg + " images";
      }
    }
    const choice = document.getElementById("kinds");
    kinds.forEach((each, index) => {
      const button = make("input", { type: "radio", name: "kind" });
      button.checked = index === 0;
      button.addEventListener("change", () => { kind = each; show(); });
      choice.append(make("label", {}, [button, " " + each]));
    });
    slider.max = times.length - 1;
    slider.value = times.length - 1;
    slider.hidden = times.length < 2;
    slider.addEventListener("input", show);
    show();
  }

  function sweeps() {
    data.sweeps.forEach((sweep, number) => {
      const place = document.getElementById("sweep-" + number);
      const choice = make("select"), log = make("input", { type: "checkbox" });
      sweep.metrics.forEach((metric, index) => choice.append(make("option", { value: index }, [metric])));
      choice.value = sweep.chosen;
      const controls = [make("label", {}, ["metric ", choice]), make("label", {}, [log, " logarithmic"])];
      const chartPlace = make("div"), tablePlace = make("div", { class: "scroll" });
      function show() {
        const metric = Number(choice.value);
        const box = chart(sweepChart(sweep, metric));
        chartPlace.replaceChildren(box);
        box.redraw(log.checked);
        tablePlace.replaceChildren(sweepTable(sweep, metric));
      }
      choice.addEventListener("change", show);
      log.addEventListener("change", show);
      place.append(make("div", { class: "controls" }, controls), chartPlace, tablePlace);
      show();
    });
  }
  function better(sweep, metric) {
    return (a, b) => (a === null) - (b === null) || (sweep.rising[metric] ? b - a : a - b);
  }
  function sweepChart(sweep, metric) {
    const length = sweep.coordinates.indexOf("sigma_rel"), lines = new Map();
    for (const row of sweep.rows) {
      const label = sweep.coordinates.map((name, index) => name + " " + row.cells[index]).filter((text, index) => index !== length).join(", ");
      if (!lines.has(label)) lines.set(label, []);
      lines.get(label).push([row.x, row.values[metric]]);
    }
    const order = better(sweep, metric);
    const best = (points) => points.map((point) => point[1]).sort(order)[0];
    const ranked = [...lines].sort((a, b) => order(best(a[1]), best(b[1])));
    const chosen = ranked.slice(0, COLOURS.length).map(([label, points]) => {
      points.sort((a, b) => a[0] - b[0]);
      return { label: label, x: points.map((point) => point[0]), y: points.map((point) => point[1]) };
    });
    const left = ranked.length - chosen.length;
    const resting = "best: " + shown(best(ranked[0][1])) + (left > 0 ? "; " + left + " worse lines are left out" : "");
    return { name: sweep.metrics[metric] + " against sigma_rel", lines: chosen, unit: "sigma_rel", resting: resting, dots: true, wide: true };
  }
  function sweepTable(sweep, metric) {
    const order = better(sweep, metric);
    const rows = [...sweep.rows].sort((a, b) => order(a.values[metric], b.values[metric]));
    const head = make("tr", {}, [...sweep.coordinates, ...sweep.metrics].map((name) => make("th", {}, [name])));
    const body = rows.map((row, index) => {
      const cells = [...row.cells, ...row.values.map(shown)].map((text) => make("td", {}, [text]));
      return make("tr", index === 0 ? { class: "best" } : {}, cells);
    });
    return make("table", {}, [make("thead", {}, [head]), make("tbody", {}, body)]);
  }

  curves();
  grids();
  sweeps();
})();
