// Which word a position attends to: point at the drawing, or choose a word.
import { bringToLife, choices, element, sentence } from "./base.js";

bringToLife("attention", (stage, data) => {
  const n = data.side, cell = data.image.length / n;  // pixels of a position's side
  const pair = element("div", { class: "t2i-pair" }, stage);
  const figure = element("figure", {}, pair);
  const canvas = element("canvas", {
    width: 192, height: 192, tabindex: 0, role: "application",
    "aria-label": "The drawing. Arrow keys move the position.",
  }, figure);
  element("div", {}, figure, "point, or press arrow keys");
  const list = element("div", { class: "t2i-words" }, pair);
  let at = [Math.floor(n / 2), Math.floor(n / 2)], word = 0;
  const show = choices(list, data.words, (k) => {
    word = k;
    draw();
  });
  const say = sentence(stage);
  const draw = () => {
    const paint = canvas.getContext("2d"), pixel = 192 / data.image.length;
    const most = Math.max(...data.maps[word].flat());
    data.image.forEach((line, i) => line.forEach((v, j) => {
      const grey = Math.round(127.5 * (v + 1));
      const w = data.maps[word][Math.floor(i / cell)][Math.floor(j / cell)] / most;
      const mix = [47, 157, 157].map((c) => Math.round(grey + 0.75 * w * (c - grey)));
      paint.fillStyle = `rgb(${mix.join(",")})`;
      paint.fillRect(j * pixel, i * pixel, pixel, pixel);
    }));
    const side = 192 / n;
    paint.lineWidth = 2;
    paint.strokeStyle = "#3a86c8";
    paint.strokeRect(at[1] * side, at[0] * side, side, side);
    const weights = data.maps.map((m) => m[at[0]][at[1]]);
    show(weights, word);
    const told = data.words.map((t, k) => `${t} ${weights[k].toFixed(2)}`).join(", ");
    say(`Row ${at[0] + 1}, column ${at[1] + 1} attends to: ${told}. ` +
      `The tint shows the weight of “${data.words[word]}” everywhere.`);
  };
  const inside = (v) => Math.max(0, Math.min(n - 1, v));
  canvas.addEventListener("pointermove", (e) => {
    const box = canvas.getBoundingClientRect();
    at = [(e.clientY - box.top) / box.height, (e.clientX - box.left) / box.width]
      .map((v) => inside(Math.floor(v * n)));
    draw();
  });
  canvas.addEventListener("keydown", (e) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1] }[e.key];
    if (!move) return;
    e.preventDefault();
    at = at.map((v, i) => inside(v + move[i]));
    draw();
  });
  draw();
});
