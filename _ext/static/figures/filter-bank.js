// A style of two numbers mixes four kernels into one, which filters a drawing.
import { bar, bringToLife, element, sentence, slider } from "./base.js";

/** The softmax of a linear layer without bias: the weight of each kernel. */
export function kernelWeights(style, selector) {
  const logits = selector.map((row) => row[0] * style[0] + row[1] * style[1]);
  const top = Math.max(...logits);
  const weights = logits.map((l) => Math.exp(l - top));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((v) => v / total);
}

/** The weighted sum of the kernels, its norm, and the kernel divided by it. */
export function mixKernels(weights, kernels) {
  const sum = kernels[0].map((row, i) => row.map((_, j) =>
    weights.reduce((total, a, n) => total + a * kernels[n][i][j], 0)));
  const norm = Math.hypot(...sum.flat());
  return { norm, kernel: sum.map((row) => row.map((v) => v / norm)) };
}

/** The image filtered by a kernel, with zeros around the image. */
export function convolve(image, kernel) {
  const reach = (kernel.length - 1) / 2;
  return image.map((line, y) => line.map((_, x) => {
    let sum = 0;
    kernel.forEach((row, i) => row.forEach((v, j) => {
      sum += v * (image[y + i - reach]?.[x + j - reach] ?? 0);
    }));
    return sum;
  }));
}

/** A canvas in a parent, one pixel for each number; returns how to paint it. */
function tile(parent, side, kind, label) {
  const canvas = element("canvas", {
    width: side, height: side, class: kind, role: "img", "aria-label": label,
  }, parent);
  const paint = canvas.getContext("2d");
  return (numbers, colour) => {
    paint.clearRect(0, 0, side, side);
    numbers.forEach((row, i) => row.forEach((v, j) => {
      paint.fillStyle = colour(v);
      paint.fillRect(j, i, 1, 1);
    }));
  };
}

const signed = (v) =>  // orange above zero, blue below, the page where it is zero
  `rgba(${v > 0 ? "217, 119, 43" : "58, 134, 200"}, ${Math.min(1, 1.6 * Math.abs(v))})`;
const range = (numbers) => [Math.min(...numbers.flat()), Math.max(...numbers.flat())];
const grey = ([low, high]) => (v) => {
  const level = Math.round(255 * (v - low) / (high - low));
  return `rgb(${level}, ${level}, ${level})`;
};

bringToLife("filter-bank", (stage, data) => {
  const bank = element("div", { class: "t2i-words t2i-bank" }, stage);
  const rows = data.names.map((name, n) => {
    const row = element("div", {}, bank);
    tile(row, 5, "t2i-kernel", `the kernel “${name}”`)(data.kernels[n], signed);
    element("span", {}, row, name);
    return bar(row);
  });
  const pair = element("div", { class: "t2i-pair t2i-row" }, stage);
  const shown = (side, words) => {
    const figure = element("figure", {}, pair);
    const paint = tile(figure, side, "", words);
    element("div", {}, figure, words);
    return paint;
  };
  const paintInput = shown(data.image.length, "the input");
  const paintKernel = shown(data.kernels[0].length, "the mixed kernel");
  const paintOutput = shown(data.image.length, "the output");
  paintInput(data.image, grey([0, 1]));
  const say = sentence(stage);
  const digits = (v) => v.toFixed(2).replace("-", "−");
  const draw = () => {
    const style = inputs.map((input) => Number(input.value));
    const weights = kernelWeights(style, data.selector);
    const { kernel, norm } = mixKernels(weights, data.kernels);
    const output = convolve(data.image, kernel), ends = range(output);
    rows.forEach((show, n) => show(weights[n], digits(weights[n])));
    paintKernel(kernel, signed);
    paintOutput(output, grey(ends));
    const entropy = -weights.reduce((sum, a) => sum + (a && a * Math.log(a)), 0);
    const told = data.names.map((name, n) => `${name} ${digits(weights[n])}`).join(", ");
    say(`Weights: ${told}; effective kernels: ${digits(Math.exp(entropy))}. The mixture ` +
      `has norm ${digits(norm)}, which demodulation makes 1. The output goes from ${
        digits(ends[0])} (black) to ${digits(ends[1])} (white).`);
  };
  const inputs = ["style w₁", "style w₂"].map((label) => slider(stage, label,
    { min: -4, max: 4, step: 0.25, value: 0 }, digits, () => draw()));
  draw();
});
