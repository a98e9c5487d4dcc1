// The page's controls. Nothing is loaded before the reader presses the first button.

import { mapPixels, paint, softmax, toPixels, toPng } from "./draw.js";
import { stepCounts } from "./sampler.js";
import {
  cleanText,
  findWords,
  promptProblem,
  statedAttributes,
  unknownWords,
  writeCaption,
} from "./text.js";

const TITLES = {
  species: "species",
  body_colour: "body colour",
  second_colour: "second colour",
  eye_colour: "eyes",
  action: "action",
  size: "size",
  facing: "facing",
};
const FIRST_PROMPT = "a blue and red dragon with green eyes, breathing fire";
const SECOND_PROMPT = "a yellow and orange duck, swimming";
let count = 0; // playgrounds on this page, for ids

// An element: el("p", { class: "x", onclick: f }, child, "text").
function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") e.toggleAttribute(key, value);
    else if (value !== undefined) e.setAttribute(key, value);
  }
  e.append(...children.filter((c) => c !== undefined));
  return e;
}

// A number as Python writes a float.
const float = (v) => (Number.isInteger(v) ? `${v}.0` : String(v));

// The worker as functions that return promises.
class Studio {
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.jobs = new Map();
    this.last = 0;
    this.worker.addEventListener("message", ({ data }) => this.answer(data));
    this.worker.addEventListener("error", (e) => {
      e.preventDefault();
      const error = new Error(e.message || "the drawing thread could not be started");
      for (const job of this.jobs.values()) job.reject(error);
      this.jobs.clear();
    });
  }

  answer({ id, progress, step, groups, result, error, stopped }) {
    const job = this.jobs.get(id);
    if (!job) return;
    if (progress) job.report?.(progress);
    else if (step) job.report?.(step, groups);
    else {
      this.jobs.delete(id);
      if (error === undefined) job.resolve(result);
      else job.reject(Object.assign(new Error(error), { stopped }));
    }
  }

  ask(kind, values = {}, report = undefined) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.jobs.set(id, { resolve, reject, report });
      this.worker.postMessage({ id, kind, ...values });
    });
  }

  stop() {
    this.worker.postMessage({ id: ++this.last, kind: "stop" });
  }
}

let studio; // one for all playgrounds of a page
let loading;

function whyNot() {
  if (typeof WebAssembly !== "object")
    return "This browser has no WebAssembly, or it is switched off; the models cannot run here.";
  if (typeof Worker !== "function" || typeof DecompressionStream !== "function")
    return "This browser is too old for the playground; a newer one runs it.";
  return null;
}

// What went wrong, in words that say what to do.
function explain(error) {
  const said = String(error?.message ?? error);
  if (/memory|allocat|RangeError/i.test(said))
    return "There is not enough memory to run the models; close other tabs and load the page again.";
  if (/missing|fetch|network/i.test(said))
    return `A file could not be loaded (${said}). If this is your own copy, build it with “make book” and open it by “make serve”.`;
  return `Something went wrong: ${said}`;
}

class Playground {
  constructor(root) {
    this.root = root;
    this.small = root.dataset.mode === "small";
    this.key = `t2i-${++count}`;
    this.frames = []; // steps of the last Imagen drawing
    this.status = el("p", {
      class: "t2i-status",
      id: `${this.key}-status`,
      role: "status",
      "aria-live": "polite",
    });
    this.bar = el("progress", {
      class: "t2i-bar",
      max: 1,
      value: 0,
      hidden: true,
      "aria-label": "progress",
    });
    this.startButton = el(
      "button",
      { type: "button", class: "t2i-main", onclick: () => this.start() },
      "Start the playground",
    );
    const note = el(
      "p",
      { class: "t2i-note" },
      "Loads about 17 MB, once, from this site only; then everything runs in your browser.",
    );
    this.startPanel = el("div", { class: "t2i-start" }, this.startButton, note);
    const still = root.querySelector("img");
    root.querySelectorAll("p").forEach((p) => p.remove());
    this.still = still;
    root.append(this.startPanel, this.bar, this.status);
    const problem = whyNot();
    if (problem) {
      this.startButton.disabled = true;
      this.say(problem);
    }
  }

  say(words) {
    this.status.textContent = words;
  }

  progress(share) {
    this.bar.hidden = share === null;
    if (share !== null) this.bar.value = share;
  }

  async start() {
    this.startButton.disabled = true;
    this.say("Loading …");
    try {
      studio ??= new Studio();
      loading ??= studio.ask("load", {}, ({ done, total, what }) =>
        this.loaded(done, total, what),
      );
      this.found = await loading;
      this.build();
      this.progress(null);
      const by = this.found.gpu ? ", with WebGPU" : "";
      this.say(`Ready${by}. Type a prompt and press Draw.`);
      this.prompt.focus();
    } catch (e) {
      studio?.worker.terminate();
      studio = loading = undefined;
      this.progress(null);
      this.startButton.disabled = false;
      this.say(explain(e));
    }
  }

  loaded(done, total, what) {
    this.progress(Math.min(1, done / total));
    const tenth = Math.floor((10 * done) / total);
    if (tenth === this.tenth) return; // a live region should not speak all the time
    this.tenth = tenth;
    this.say(
      what === "ready"
        ? "Starting …"
        : `Loading: ${(done / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`,
    );
  }

  // ---- controls

  label(text, control, more) {
    control.id ||= `${this.key}-${text.replace(/\W+/g, "-")}`;
    return el(
      "div",
      { class: "t2i-field" },
      el("label", { for: control.id }, text),
      control,
      more,
    );
  }

  range(text, { min, max, step, value }, oninput = () => {}) {
    const shown = el("output", {}, String(value));
    const control = el("input", {
      type: "range",
      min,
      max,
      step,
      value,
      oninput: () => {
        shown.textContent = control.value;
        oninput(Number(control.value));
      },
    });
    control.show = (v) => {
      control.value = v;
      shown.textContent = control.value;
    };
    return [control, this.label(text, control, shown)];
  }

  choice(text, options, value) {
    const control = el(
      "select",
      {},
      ...options.map((o) => el("option", { value: o, selected: o === value }, String(o))),
    );
    return [control, this.label(text, control)];
  }

  // A field for a prompt, and below it the words that the models do not know.
  promptField(text, value, oninput = () => {}) {
    const words = el("div", { class: "t2i-words" });
    const control = el("input", {
      type: "text",
      value,
      autocomplete: "off",
      spellcheck: "false",
      class: "t2i-prompt",
      "aria-describedby": this.status.id,
      oninput: () => {
        this.showWords(control, words);
        oninput();
      },
    });
    control.set = (v) => {
      control.value = v;
      control.dispatchEvent(new Event("input"));
    };
    return [control, el("div", {}, this.label(text, control), words)];
  }

  // A button that moves a slider by itself; pressed again, it stops.
  playButton(text, slider, values, show, pause) {
    let presses = 0; // odd while it plays
    const button = el(
      "button",
      {
        type: "button",
        class: "t2i-small-button",
        disabled: true,
        onclick: async () => {
          const turn = ++presses;
          button.textContent = turn % 2 ? "Pause" : text;
          if (turn % 2 === 0) return;
          for (const v of values()) {
            slider.show(v);
            await show();
            await new Promise((resolve) => setTimeout(resolve, pause));
            if (presses !== turn) return;
          }
          presses++;
          button.textContent = text;
        },
      },
      text,
    );
    return button;
  }

  build() {
    const { settings, models } = this.found;
    this.imagen = models.find((m) => settings[m].model_type === "imagen");
    this.gan = models.find((m) => settings[m].model_type === "gigagan");
    const [a, b] = [settings[this.imagen], settings[this.gan]];
    this.words = a.tokenizer.words;

    const [prompt, promptField] = this.promptField("prompt", FIRST_PROMPT, () =>
      this.showAttributes(),
    );
    this.prompt = prompt;
    this.model = el("fieldset", { class: "t2i-models" }, el("legend", {}, "model"));
    for (const [value, text] of [
      [this.imagen, "Imagen"],
      [this.gan, "GigaGAN"],
      ["both", "both, to compare"],
    ]) {
      const radio = el("input", {
        type: "radio",
        name: `${this.key}-model`,
        value,
        checked: value === "both",
      });
      this.model.append(el("label", {}, radio, ` ${text}`));
    }
    this.seed = el("input", { type: "number", min: 0, max: 4294967295, step: 1, value: 0 });
    const [scale, scaleField] = this.range("guidance", {
      min: 0,
      max: 8,
      step: 0.5,
      value: a.guidance_scale,
    });
    const [sampler, samplerField] = this.choice("sampler", Object.keys(a.samplers), "dpmpp-2m");
    const [steps, stepsField] = this.choice("steps", stepCounts(a, "dpmpp-2m"), a.num_steps);
    const [psi, psiField] = this.range("truncation", {
      min: 0,
      max: 1,
      step: 0.05,
      value: b.truncation_psi,
    });
    Object.assign(this, { scale, sampler, steps, psi });

    this.drawButton = el("button", { type: "submit", class: "t2i-main" }, "Draw");
    this.stopButton = el(
      "button",
      { type: "button", disabled: true, onclick: () => this.stop() },
      "Stop",
    );
    const another = el(
      "button",
      {
        type: "button",
        onclick: () => {
          this.seed.value = Math.floor(Math.random() * 2 ** 32);
          this.draw();
        },
      },
      "Another seed",
    );
    const buttons = el(
      "div",
      { class: "t2i-buttons" },
      this.drawButton,
      another,
      this.stopButton,
    );
    const details = el(
      "details",
      { class: "t2i-more" },
      el("summary", {}, "Settings"),
      el(
        "div",
        { class: "t2i-grid" },
        this.label("seed", this.seed),
        scaleField,
        stepsField,
        samplerField,
        psiField,
      ),
    );
    const form = el(
      "form",
      {
        class: "t2i-form",
        onsubmit: (e) => {
          e.preventDefault();
          this.draw();
        },
      },
      promptField,
      this.small ? "" : this.attributes(),
      this.small ? "" : this.model,
      this.small ? "" : details,
      buttons,
    );

    this.results = el("div", { class: "t2i-results" });
    this.cards = {
      [this.imagen]: this.card(this.imagen, "Imagen"),
      [this.gan]: this.card(this.gan, "GigaGAN"),
    };
    this.results.append(...Object.values(this.cards).map((c) => c.figure));
    this.still?.remove();
    this.startPanel.remove();
    this.root.prepend(form);
    this.root.append(this.results);
    if (!this.small) this.root.append(this.stepsPanel(), this.moves());
    this.showAttributes();
  }

  attributes() {
    this.selects = {};
    const grid = el("div", { class: "t2i-grid" });
    for (const [key, values] of Object.entries(this.found.attributes)) {
      const select = el(
        "select",
        { onchange: () => this.writePrompt() },
        el("option", { value: "" }, "any"),
        ...values.map((v) => el("option", { value: v }, v)),
      );
      this.selects[key] = select;
      grid.append(this.label(TITLES[key], select));
    }
    return el(
      "details",
      { class: "t2i-more" },
      el("summary", {}, "Choose attributes instead of typing"),
      grid,
    );
  }

  // A prompt of the chosen attributes.
  writePrompt() {
    const chosen = Object.entries(this.selects).map(([key, select]) => [key, select.value]);
    const { species, ...others } = Object.fromEntries(chosen);
    this.prompt.set(writeCaption({ species: species || "dragon", ...others }));
  }

  // The attributes of a typed prompt.
  showAttributes() {
    const { attributes, parts } = this.found;
    const stated = statedAttributes(this.prompt.value, attributes, parts);
    for (const [key, select] of Object.entries(this.selects ?? {}))
      select.value = stated[key] ?? "";
  }

  // Unknown words underlined, with known ones to press.
  showWords(control, box) {
    const text = control.value;
    const unknown = new Map(
      unknownWords(cleanText(text).slice(0, 1000), this.words).map((u) => [u.word, u.similar]),
    );
    box.replaceChildren();
    if (!unknown.size) return;
    const line = el("p", {}, "The models do not know: ");
    let at = 0;
    const marked = el("span", { class: "t2i-marked" });
    for (const { word, start, end } of findWords(text)) {
      if (!unknown.has(word)) continue;
      marked.append(text.slice(at, start), el("u", {}, text.slice(start, end)));
      at = end;
    }
    marked.append(text.slice(at));
    line.append(marked);
    const buttons = el("p", {});
    for (const [word, similar] of [...unknown].slice(0, 5)) {
      for (const known of similar) {
        buttons.append(
          el(
            "button",
            {
              type: "button",
              class: "t2i-small-button",
              onclick: () => this.replaceWord(control, word, known),
            },
            `${word} → ${known}`,
          ),
        );
      }
    }
    box.append(line, buttons);
  }

  replaceWord(control, word, known) {
    const text = control.value;
    let [result, at] = ["", 0];
    for (const w of findWords(text)) {
      if (w.word !== word) continue;
      result += text.slice(at, w.start) + known;
      at = w.end;
    }
    control.set(result + text.slice(at));
    control.focus();
  }

  // ---- results

  card(model, title) {
    const canvas = el("canvas", {
      class: "t2i-canvas",
      width: 32,
      height: 32,
      role: "img",
      "aria-label": `${title}: nothing drawn yet`,
    });
    const caption = el("figcaption", {}, title);
    const verdict = el("div", { class: "t2i-verdict" });
    const line = el("code", { class: "t2i-python" });
    const copy = el(
      "button",
      { type: "button", class: "t2i-small-button", onclick: () => this.copy(line.textContent) },
      "Copy Python",
    );
    const save = el(
      "button",
      { type: "button", class: "t2i-small-button", onclick: () => this.save(canvas, title) },
      "Save PNG",
    );
    const tools = el(
      "div",
      { class: "t2i-tools", hidden: true },
      save,
      copy,
      el("details", {}, el("summary", {}, "Python"), line),
    );
    const figure = el(
      "figure",
      { class: "t2i-card", "data-model": model },
      canvas,
      caption,
      this.small ? "" : tools,
      this.small ? "" : verdict,
    );
    return { figure, canvas, caption, verdict, line, tools, title };
  }

  async copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      this.say("Copied.");
    } catch {
      this.say("The browser does not allow copying; select the line below “Python”.");
    }
  }

  async save(canvas, title) {
    const name =
      cleanText(this.drawn.prompt)
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, "-")
        .slice(0, 60) || "image";
    const url = URL.createObjectURL(await toPng(canvas));
    el("a", {
      href: url,
      download: `${name}-${title.toLowerCase()}-seed${this.drawn.seed}.png`,
    }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  python(model, o) {
    const text = JSON.stringify(cleanText(o.prompt));
    const options =
      model === this.gan
        ? `seed=${o.seed}, truncation_psi=${float(o.psi)}`
        : `seed=${o.seed}, guidance_scale=${float(o.scale)}, num_steps=${o.numSteps}, sampler="${o.sampler}"`;
    const name = model === this.gan ? "GigaGAN" : "Imagen";
    return `from t2i_tutorial import ${name}\nimage = ${name}.from_pretrained("${model}").sample([${text}], ${options})[0]`;
  }

  options() {
    const seed = Number(this.seed.value);
    return {
      prompt: this.prompt.value,
      seed,
      scale: Number(this.scale.value),
      numSteps: Number(this.steps.value),
      sampler: this.sampler.value,
      psi: Number(this.psi.value),
    };
  }

  problem(options) {
    if (!Number.isInteger(options.seed) || options.seed < 0 || options.seed >= 2 ** 32)
      return "The seed must be a whole number from 0 to 4294967295.";
    return promptProblem(options.prompt, this.found.settings[this.imagen].max_prompt);
  }

  async draw(more = {}) {
    const options = { ...this.options(), ...more };
    const problem = this.problem(options);
    if (problem) {
      this.prompt.setAttribute("aria-invalid", "true");
      this.prompt.focus();
      return this.say(problem);
    }
    this.prompt.removeAttribute("aria-invalid");
    const chosen = this.small ? "both" : this.model.querySelector("input:checked").value;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.drawn = options;
    this.stopButton.disabled = false;
    const said = [];
    try {
      for (const model of chosen === "both" ? [this.gan, this.imagen] : [chosen]) {
        for (const card of Object.values(this.cards))
          card.figure.hidden = chosen !== "both" && card !== this.cards[chosen];
        const done = await this.drawOne(model, options, turn);
        if (turn !== this.turn) return;
        said.push(`${this.cards[model].title}: ${done.seconds.toFixed(1)} s`);
        if (done.cut) said.push("only the first words of the prompt were read");
      }
      this.say(`Drawn. ${said.join("; ")}.`);
    } catch (e) {
      if (turn !== this.turn) return;
      this.say(e.stopped ? "Stopped." : explain(e));
    } finally {
      if (turn === this.turn) {
        this.stopButton.disabled = true;
        this.progress(null);
      }
    }
  }

  stop() {
    studio.stop();
    this.turn++; // what is still on its way is ignored
    this.stopButton.disabled = true;
    this.progress(null);
    this.say("Stopped.");
  }

  async drawOne(model, options, turn) {
    const card = this.cards[model];
    const { size } = this.found.settings[model];
    const imagen = model === this.imagen;
    if (imagen) this.frames = [];
    this.say(`${card.title} is drawing …`);
    const done = await studio.ask("draw", { model, ...options }, (step, groups) => {
      if (turn !== this.turn) return;
      this.frames.push({ ...step, groups });
      this.progress(this.frames.length / options.numSteps);
      paint(card.canvas, toPixels(step.x0, size), size);
      if (!this.small) this.stepped();
    });
    if (turn !== this.turn) return done;
    paint(card.canvas, toPixels(done.image, size), size);
    card.canvas.setAttribute(
      "aria-label",
      `${card.title}: ${options.prompt}, seed ${options.seed}`,
    );
    card.caption.textContent = `${card.title}, ${done.seconds.toFixed(1)} s`;
    Object.assign(card, { image: done.image, seconds: done.seconds });
    if (this.small) return done;
    card.tools.hidden = false;
    card.line.textContent = this.python(model, options);
    if (!imagen) this.latent(done.z, options);
    this.showVerdict(card, await studio.ask("classify", { image: done.image }), options.prompt);
    return done;
  }

  // What the attribute classifier finds, beside what the prompt states.
  showVerdict(card, logits, prompt) {
    const stated = statedAttributes(prompt, this.found.attributes, this.found.parts);
    const rows = [];
    let right = 0;
    for (const [key, values] of Object.entries(this.found.attributes)) {
      const shares = softmax(logits[key]);
      const best = shares.indexOf(Math.max(...shares));
      const asked = stated[key];
      const found = asked === values[best];
      if (asked && found) right++;
      rows.push(
        el(
          "tr",
          { class: asked ? (found ? "t2i-right" : "t2i-wrong") : undefined },
          el("th", { scope: "row" }, TITLES[key]),
          el("td", {}, values[best]),
          el("td", {}, `${Math.round(100 * shares[best])}\u00a0%`),
          el("td", {}, asked ? (found ? "as asked" : `asked: ${asked}`) : ""),
        ),
      );
    }
    const n = Object.keys(stated).length;
    const words = n
      ? `The classifier finds ${right} of ${n} stated attributes`
      : "What the classifier sees";
    const table = el("table", {}, el("tbody", {}, ...rows));
    card.verdict.replaceChildren(el("details", {}, el("summary", {}, words), table));
  }

  // ---- the steps of a denoising, and where each word was used

  stepsPanel() {
    const [slider, field] = this.range("step", { min: 1, max: 1, step: 1, value: 1 }, () =>
      this.showStep(),
    );
    this.slider = slider;
    slider.disabled = true;
    const play = () => this.showStep();
    const steps = () => this.frames.map((_, i) => i + 1);
    this.playSteps = this.playButton("Play the steps", slider, steps, play, 120);
    this.noisy = el("canvas", {
      class: "t2i-canvas",
      width: 32,
      height: 32,
      role: "img",
      "aria-label": "the noisy image at this step",
    });
    this.clean = el("canvas", {
      class: "t2i-canvas",
      width: 32,
      height: 32,
      role: "img",
      "aria-label": "the prediction of the clean image at this step",
    });
    this.maps = el("div", { class: "t2i-maps" });
    const pair = el(
      "div",
      { class: "t2i-results" },
      el("figure", { class: "t2i-card" }, this.noisy, el("figcaption", {}, "after the step")),
      el(
        "figure",
        { class: "t2i-card" },
        this.clean,
        el("figcaption", {}, "predicted clean image"),
      ),
    );
    const panel = el(
      "details",
      { class: "t2i-more" },
      el("summary", {}, "The Imagen's steps, and where each word is used"),
      field,
      this.playSteps,
      pair,
      el(
        "p",
        { class: "t2i-note" },
        "Attention of the positions to each word, a mean over layers and heads; white is the word's own largest.",
      ),
      this.maps,
    );
    panel.addEventListener("toggle", () => this.showStep());
    return panel;
  }

  stepped() {
    const atEnd = this.slider.disabled || Number(this.slider.value) >= this.frames.length - 1;
    this.slider.disabled = this.playSteps.disabled = false;
    this.slider.max = this.frames.length;
    if (atEnd || this.frames.length === 1) this.slider.show(this.frames.length);
    this.showStep();
  }

  showStep() {
    const frame = this.frames[Number(this.slider.value) - 1];
    if (!frame || !this.slider.closest("details").open) return;
    const { size } = this.found.settings[this.imagen];
    paint(this.noisy, toPixels(frame.x, size), size);
    paint(this.clean, toPixels(frame.x0, size), size);
    const groups = frame.groups.slice(0, 24);
    if (
      this.maps.childElementCount !== groups.length ||
      this.maps.dataset.words !== groups.map((g) => g.word).join(" ")
    ) {
      this.maps.dataset.words = groups.map((g) => g.word).join(" ");
      this.maps.replaceChildren(
        ...groups.map((g) =>
          el(
            "figure",
            {},
            el("canvas", {
              class: "t2i-map",
              role: "img",
              "aria-label": `where “${g.word}” is used`,
            }),
            el("figcaption", {}, g.word),
          ),
        ),
      );
    }
    groups.forEach((g, i) =>
      paint(
        this.maps.children[i].firstChild,
        mapPixels(frame.maps.data, g.positions, frame.maps.side),
        frame.maps.side,
      ),
    );
  }

  // ---- moving in the GAN's latent space

  moves() {
    const span = { min: -3, max: 3, step: 0.05, value: 0 };
    const move = () => this.move();
    const [first, firstField] = this.range("first direction", span, move);
    const [second, secondField] = this.range("second direction", span, move);
    const [mix, mixField] = this.range(
      "towards it",
      { min: 0, max: 1, step: 0.02, value: 0 },
      move,
    );
    const [target, targetField] = this.promptField("another prompt", SECOND_PROMPT, move);
    const there = Array.from({ length: 26 }, (_, i) => i / 25);
    const walk = () => [...there, ...there.toReversed()];
    this.playWalk = this.playButton("Walk there and back", mix, walk, move, 60);
    Object.assign(this, { first, second, mix, target });
    this.moved = el("canvas", {
      class: "t2i-canvas t2i-drag",
      width: 32,
      height: 32,
      role: "img",
      "aria-label":
        "the GAN's image; drag it, or use the two sliders, to move in the latent space",
    });
    let from = null;
    this.moved.addEventListener("pointerdown", (e) => {
      from = { x: e.clientX, y: e.clientY, a: Number(first.value), b: Number(second.value) };
      this.moved.setPointerCapture(e.pointerId);
    });
    this.moved.addEventListener("pointermove", (e) => {
      if (!from) return;
      const scale = 6 / this.moved.clientWidth;
      first.show(from.a + scale * (e.clientX - from.x));
      second.show(from.b + scale * (e.clientY - from.y));
      this.move();
    });
    for (const end of ["pointerup", "pointercancel"])
      this.moved.addEventListener(end, () => (from = null));
    this.rate = el("figcaption", {}, "draw with the GigaGAN first");
    this.movesPanel = el(
      "details",
      { class: "t2i-more" },
      el("summary", {}, "Move in the GigaGAN's latent space, or walk between two prompts"),
      el(
        "div",
        { class: "t2i-results" },
        el("figure", { class: "t2i-card" }, this.moved, this.rate),
        el(
          "div",
          { class: "t2i-card" },
          firstField,
          secondField,
          targetField,
          mixField,
          this.playWalk,
        ),
      ),
    );
    return this.movesPanel;
  }

  latent(z, options) {
    this.origin = { z, options };
    this.playWalk.disabled = false;
    const random = (k) =>
      Float32Array.from(z, (_, i) => Math.sin(12.9898 * (i + 1) * k + 4 * k)); // two fixed directions
    this.directions = [random(1), random(2)];
    for (const control of [this.first, this.second, this.mix]) control.show(0);
    this.rate.textContent = "drag the image, or use the sliders";
    this.move();
  }

  // Always the newest place only: while one image is drawn, others are forgotten.
  async move() {
    if (!this.origin) return;
    this.wanted = true;
    if (this.moving) return;
    this.moving = true;
    const start = performance.now();
    let drawn = 0;
    try {
      while (this.wanted) {
        this.wanted = false;
        const { z, options } = this.origin;
        const [a, b] = [Number(this.first.value), Number(this.second.value)];
        const [u, v] = this.directions;
        const at = z.map((x, i) => x + a * u[i] + b * v[i]);
        const mix = Number(this.mix.value);
        const second = promptProblem(this.target.value) ? "" : this.target.value;
        const { image } = await studio.ask("move", {
          model: this.gan,
          prompt: options.prompt,
          psi: options.psi,
          z: at,
          second,
          mix,
        });
        const { size } = this.found.settings[this.gan];
        paint(this.moved, toPixels(image, size), size);
        drawn++;
      }
      const rate = drawn / ((performance.now() - start) / 1000);
      this.rate.textContent = `drag the image, or use the sliders (${rate.toFixed(0)} images a second)`;
    } catch (e) {
      this.say(explain(e));
    } finally {
      this.moving = false;
    }
  }
}

for (const root of document.querySelectorAll(".t2i-playground"))
  root.playground = new Playground(root);
