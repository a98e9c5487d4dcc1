// Arrays to pixels.

// A (3, s, s) array in [-1, 1] to the RGBA bytes of a canvas.
export function toPixels(x, size) {
  const pixels = new Uint8ClampedArray(4 * size * size);
  const n = size * size;
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = Math.round((x[c * n + i] + 1) * 127.5);
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}

// The map of a word, the sum over its tokens, as grey pixels: white is its own largest.
export function mapPixels(maps, positions, side) {
  const n = side * side;
  const sum = new Float32Array(n);
  for (const p of positions) for (let i = 0; i < n; i++) sum[i] += maps[p * n + i];
  let [low, high] = [Infinity, -Infinity];
  for (const v of sum) [low, high] = [Math.min(low, v), Math.max(high, v)];
  const pixels = new Uint8ClampedArray(4 * n);
  for (let i = 0; i < n; i++) {
    pixels.fill(high > low ? (255 * (sum[i] - low)) / (high - low) : 0, 4 * i, 4 * i + 3);
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}

export function paint(canvas, pixels, size) {
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(new ImageData(pixels, size, size), 0, 0);
}

// The canvas enlarged without blur, as a PNG.
export function toPng(canvas, scale = 8) {
  const large = document.createElement("canvas");
  large.width = large.height = canvas.width * scale;
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  return new Promise((resolve) => large.toBlob(resolve, "image/png"));
}

// Probabilities of logits.
export function softmax(logits) {
  const most = Math.max(...logits);
  const e = Array.from(logits, (v) => Math.exp(v - most));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / total);
}
