// What the page's parts leave unsaid for those who listen or use the keyboard.
// Sliders of ipywidgets get a name and their value in words, images of widgets a
// description, and buttons with text are named by that text.

const words = (e) => (e?.textContent ?? "").replace(/\s+/g, " ").trim();

function set(element, name, value) {
  if (value && element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function nameWidgets() {
  for (const slider of document.querySelectorAll(".widget-slider")) {
    const handle = slider.querySelector(".noUi-handle");
    if (!handle) continue;
    set(handle, "aria-label", words(slider.querySelector(".widget-label")));
    set(handle, "aria-valuetext", words(slider.querySelector(".widget-readout")));
  }
  for (const image of document.querySelectorAll(".widget-image")) {
    const box = image.closest(".widget-subarea") ?? image.parentElement;
    const states = [...box.querySelectorAll(".widget-slider")].map(
      (s) => `${words(s.querySelector(".widget-label"))}: ` +
        words(s.querySelector(".widget-readout")));
    set(image, "alt", `Image at ${states.join(", ") || "one setting"}`);
  }
}

function nameButtons() {
  for (const b of document.querySelectorAll("button.search-button-field[aria-label]"))
    b.removeAttribute("aria-label");
  // its icons become drawings with titles, of which one is shown: the label says it all
  for (const b of document.querySelectorAll("button.theme-switch-button")) {
    const hush = () => b.querySelectorAll("svg:not([aria-hidden=true]), svg[role]")
      .forEach((svg) => {
        svg.setAttribute("aria-hidden", "true");
        svg.removeAttribute("role");
        svg.querySelector("title")?.remove();
      });
    new MutationObserver(hush).observe(b, { childList: true, subtree: true });
    hush();
  }
  for (const s of document.querySelectorAll("nav .has-children > details > summary")) {
    const above = words(s.closest(".has-children").querySelector("a"));
    set(s, "aria-label", `pages below ${above}`);
  }
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    nameWidgets();
  });
}

nameButtons();
if (document.querySelector('script[type*="jupyter.widget-view"]')) {
  new MutationObserver(soon).observe(document.querySelector("main") ?? document.body, {
    childList: true, subtree: true, characterData: true,
    attributes: true, attributeFilter: ["aria-valuetext"],
  });
  soon();
}
