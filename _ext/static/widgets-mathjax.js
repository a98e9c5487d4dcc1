// The widgets' script asks MathJax 2 to set the labels of sliders; this answers it with the MathJax 3 of the page.
window.MathJax = window.MathJax || {};
window.MathJax.Hub = window.MathJax.Hub || {
  Queue: ([, , element]) => { if (window.MathJax.typesetPromise) window.MathJax.typesetPromise(element ? [element] : undefined); },
};
