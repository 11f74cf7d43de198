// Helpers for the scripts of all views. Each view runs its own copy: no shared state.

const TYPED = {
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, float32: Float32Array,
};

// The data of a view; an array becomes {shape, values}, row-major.
function unpack(root) {
  return JSON.parse(root.querySelector('script[type="application/json"]').textContent,
    (_, value) => value && value.base64 !== undefined ? unpackArray(value) : value);
}

function unpackArray({dtype, shape, base64}) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return {shape, values: new TYPED[dtype](bytes.buffer)};
}

// A new element; functions in `attributes` are event listeners, children are elements or text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child != null));
  return element;
}

// A control with its label.
function labelled(text, control) {
  return make("label", {}, make("span", {}, text), control);
}

// Keeps the notebook from using the keys that move a control.
function own_keys(event) { event.stopPropagation(); }

function slider(text, least, most, value, changed) {
  const shown = make("output", {}, String(value));
  const input = make("input", {
    type: "range", min: least, max: most, step: 1, value, "aria-label": text, keydown: own_keys,
    input: () => { shown.textContent = input.value; changed(Number(input.value)); },
  });
  const whole = labelled(text, input);
  whole.append(shown);
  return {whole, input, set: number => { input.value = number; shown.textContent = number; }};
}

function menu(text, options, value, changed) {
  const select = make("select",
    {"aria-label": text, keydown: own_keys, change: () => changed(select.value)},
    ...options.map(([name, key]) => make("option", {value: key, selected: key === value}, name)));
  return {whole: labelled(text, select), select};
}

// A button that calls `step` every `pause` milliseconds until it is pressed again, `step` returns
// false, or the view is gone because its cell ran again.
function player(step, pause) {
  let timer = null;
  const button = make("button", {type: "button", click: () => timer ? stop() : start()}, "▶ play");
  function start() {
    timer = setInterval(() => { if (!button.isConnected || step() === false) stop(); }, pause);
    button.textContent = "❚❚ pause";
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶ play";
  }
  return {button, stop};
}

function megabytes(bytes) {
  const [unit, size] = bytes >= 1e9 ? ["GB", 1e9] : bytes >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  return bytes ? `${(bytes / size).toFixed(bytes / size < 10 ? 2 : 1)} ${unit}` : "nothing";
}

// Hides the static picture, which is for pages without scripts.
function hide_twin(root) {
  const end = root.parentElement?.querySelector(":scope > .moe-twin")?.dataset.end;
  if (!end) return;
  let place = root;
  while (place && !place.previousElementSibling?.querySelector("img")) place = place.parentElement;
  const image = place?.previousElementSibling.querySelector("img");
  if (image?.src.endsWith(end)) image.hidden = true;
}
