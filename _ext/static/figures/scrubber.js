// One denoising run after another: what a step gets and what it predicts.
import { bringToLife, element, sentence, slider } from "./base.js";

bringToLife("scrubber", (stage, data) => {
  const pair = element("div", { class: "t2i-pair" }, stage);
  const canvases = ["the noisy image", "the predicted clean image"].map((words) => {
    const figure = element("figure", {}, pair);
    const canvas = element("canvas", {
      width: data.side, height: data.side, role: "img", "aria-label": words,
    }, figure);
    element("div", {}, figure, words);
    return canvas;
  });
  const say = sentence(stage);
  const sheet = new Image();
  const draw = () => {
    const row = Number(scale.value), k = Number(step.value);
    canvases.forEach((canvas, which) => canvas.getContext("2d").drawImage(
      sheet, k * data.side, (2 * row + which) * data.side, data.side, data.side,
      0, 0, data.side, data.side));
    say(`w = ${data.scales[row]}, t = ${data.timesteps[k]}: ${data.words[row][k]}`);
  };
  const scale = slider(stage, "guidance scale w",
    { min: 0, max: data.scales.length - 1, step: 1, value: 1 },
    (v) => `${data.scales[v]}`, () => draw());
  const last = data.timesteps.length - 1;
  const step = slider(stage, "denoising step", { min: 0, max: last, step: 1, value: last },
    (v) => `${v + 1} of ${last + 1}`, () => draw());
  sheet.addEventListener("load", () => draw());
  sheet.src = data.sheet;
});
