// What the interactive figures share: a stage, sliders, axes, a sentence that is read out.

const NS = "http://www.w3.org/2000/svg";
let ids = 0;

/** Build each figure of this name from its data; where that fails the still one stays. */
export function bringToLife(name, build) {
  for (const root of document.querySelectorAll(`[data-figure="${name}"]`)) {
    if (root.dataset.alive) continue;
    root.dataset.alive = "yes";
    const still = root.querySelector("img");
    const stage = element("div", { class: "t2i-stage" });
    const width = Math.max(280, Math.min(640, root.clientWidth || 640));
    try {
      build(stage, JSON.parse(root.querySelector("script").textContent), width);
      still.hidden = true;
      root.append(stage);
    } catch (problem) {
      console.warn(`the figure ${name} stays still:`, problem);
    }
  }
}

/** An HTML element with attributes, in a parent. */
export function element(tag, attributes = {}, parent = null, text = "") {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text) e.textContent = text;
  parent?.append(e);
  return e;
}

/** An SVG element with attributes, in a parent. */
export function drawn(tag, attributes, parent, text = "") {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text) e.textContent = text;
  parent?.append(e);
  return e;
}

/** A labelled range; `words(value)` says the value; returns the input. */
export function slider(parent, label, range, words, changed) {
  const id = `t2i-figure-${(ids += 1)}`;
  const row = element("div", { class: "t2i-control" }, parent);
  element("label", { for: id }, row, label);
  const input = element("input", { type: "range", id, ...range }, row);
  const output = element("output", { for: id }, row);
  input.value = range.value;
  const tell = () => {
    output.textContent = words(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    tell();
    changed();
  });
  tell();
  return input;
}

/** A bar and its number at the end of a row; returns how to show a share of 1. */
export function bar(row) {
  const line = element("span", { class: "bar" }, element("span", {}, row));
  const number = element("span", {}, row);
  line.style.display = "block";
  return (share, words = share.toFixed(2)) => {
    line.style.width = `${Math.round(100 * Math.min(1, share))}%`;
    number.textContent = words;
  };
}

/** A button with a bar for each name, one of them pressed; returns how to show them. */
export function choices(list, names, chosen) {
  const rows = names.map((name, k) => {
    const button = element("button", { type: "button" }, list);
    element("span", {}, button, name);
    button.addEventListener("click", () => chosen(k));
    return { button, show: bar(button) };
  });
  return (shares, pressed) => rows.forEach(({ button, show }, k) => {
    button.setAttribute("aria-pressed", `${k === pressed}`);
    show(shares[k]);
  });
}

/** A sentence below a figure that is read out when it changes. */
export function sentence(parent) {
  const p = element("p", { class: "t2i-said", "aria-live": "polite" }, parent);
  return (text) => {
    if (p.textContent !== text) p.textContent = text;
  };
}

/** Axes in an SVG; `x` and `y` are [from, to]; returns how to draw into them. */
export function axes(parent, { width, height, x, y, xlabel, ylabel, ticks, name }) {
  const left = 52, bottom = 40, top = 10, right = 12;
  const svg = drawn("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name,
  }, parent);
  const sx = (v) => left + (v - x[0]) / (x[1] - x[0]) * (width - left - right);
  const sy = (v) => height - bottom - (v - y[0]) / (y[1] - y[0]) * (height - bottom - top);
  const frame = drawn("g", { class: "t2i-axes" }, svg);
  drawn("path", { d: `M${left} ${top}V${sy(y[0])}H${width - right}` }, frame);
  for (const v of ticks?.x ?? []) {
    drawn("text", { x: sx(v), y: sy(y[0]) + 16, "text-anchor": "middle" }, frame, `${v}`);
  }
  for (const v of ticks?.y ?? []) {
    drawn("text", { x: left - 7, y: sy(v) + 4, "text-anchor": "end" }, frame, `${v}`);
  }
  drawn("text", {
    x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle",
  }, frame, xlabel);
  drawn("text", {
    transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`,
    "text-anchor": "middle",
  }, frame, ylabel);
  const path = (xs, ys) => xs.map((v, i) => {
    const clipped = Math.min(y[1], Math.max(y[0], ys[i]));
    return `${i ? "L" : "M"}${sx(v).toFixed(1)} ${sy(clipped).toFixed(1)}`;
  }).join("");
  return { svg, sx, sy, path };
}
