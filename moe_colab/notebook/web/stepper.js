// The controls of the stepper: token, layer and step, by mouse, by key or by playing. steps.js draws
// the content of a step.

const PAUSE = 1800; // milliseconds per step while it plays

function stepper(root) {
  hide_twin(root);
  const data = unpack(root);
  const last = data.first + data.texts.length - 1, layers = data.experts.length;
  const now = {token: data.start[0], layer: data.start[1], step: 0};

  // ---------------------------------------------------------------- controls
  const words = data.texts.map((_, i) => make("span", {
    role: "option", id: `${root.id}-word${i}`, title: place_of(data, i),
    click: () => go({token: data.first + i}),
  }, make("bdi", {}, word_of(data, i))));
  const strip = make("div", {
    class: "text", role: "listbox", tabindex: 0, keydown: keys(along("token"), along("layer")),
    "aria-label": "The text. Left and right: token; up and down: layer",
  }, ...words);
  const token = slider("token", data.first, last, now.token, value => go({token: value}));
  const layer = slider("layer", 0, layers - 1, now.layer, value => go({layer: value}));
  const tabs = STEPS.map(([name], i) => make("button", {
    type: "button", role: "tab", id: `${root.id}-tab${i}`, "aria-controls": `${root.id}-panel`,
    click: () => go({step: i}),
  }, make("b", {}, String(i + 1)), ` ${name}`));
  const list = make("div", {
    class: "steps", role: "tablist", "aria-label": "The steps. Left and right: step",
    keydown: keys(along("step"), along("layer")),
  }, ...tabs);
  const back = make("button", {type: "button", click: () => walk(-1)}, "◀ previous");
  const next = make("button", {type: "button", click: () => walk(1)}, "next ▶");
  const play = player(() => walk(1), PAUSE);
  const where = make("span", {class: "where", "aria-live": "polite"});
  const panel = make("div", {class: "panel", role: "tabpanel", id: `${root.id}-panel`, tabindex: 0,
    keydown: keys(along("step"), along("layer"))});
  root.append(make("div", {class: "bar title"}, make("strong", {}, "One token, one layer, step by step"),
    make("span", {class: "dim"}, about(data))),
    strip, make("div", {class: "bar"}, token.whole, layer.whole), list,
    make("div", {class: "bar"}, back, next, play.button, where), panel);

  // ---------------------------------------------------------------- movement
  function limits(name) {
    return {token: [data.first, last], layer: [0, layers - 1], step: [0, STEPS.length - 1]}[name];
  }

  // For the keys: moves `name` by one, or to an end.
  function along(name) {
    return (by, end) => {
      const [least, most] = limits(name);
      const value = end ? (by < 0 ? least : most) : Math.min(most, Math.max(least, now[name] + by));
      go({[name]: value});
      if (name === "step" && root.contains(document.activeElement) &&
          document.activeElement.role === "tab") tabs[now.step].focus();
    };
  }

  // Moves to the next step, then the next layer, then the next token; false at the end.
  function walk(by) {
    const number = ((now.token - data.first) * layers + now.layer) * STEPS.length + now.step + by;
    const place = Math.floor(number / STEPS.length), row = Math.floor(place / layers);
    if (number < 0 || row >= data.texts.length) return false;
    go({token: data.first + row, layer: place - row * layers, step: number - place * STEPS.length});
    return !(by > 0 && next.disabled);
  }

  function go(change) {
    Object.assign(now, change);
    draw();
  }

  function draw() {
    const i = now.token - data.first, token_step = token_step_of(data, i, now.layer);
    words.forEach((word, j) => word.setAttribute("aria-selected", String(j === i)));
    strip.setAttribute("aria-activedescendant", words[i].id);
    show_in(strip, words[i]);
    token.set(now.token);
    layer.set(now.layer);
    tabs.forEach((tab, j) => {
      tab.setAttribute("aria-selected", String(j === now.step));
      tab.tabIndex = j === now.step ? 0 : -1;
    });
    const at_begin = i === 0 && now.layer === 0 && now.step === 0;
    const at_end = now.token === last && now.layer === layers - 1 && now.step === STEPS.length - 1;
    back.disabled = at_begin;
    next.disabled = at_end;
    where.textContent = `step ${now.step + 1} of ${STEPS.length}, layer ${now.layer}, token ${now.token}`;
    panel.setAttribute("aria-labelledby", tabs[now.step].id);
    panel.replaceChildren(make("h3", {}, `${now.step + 1}. ${STEPS[now.step][1]}`),
      ...DRAWN[now.step](data, token_step));
    Object.assign(panel.dataset, now);
  }

  draw();
}

// Arrow keys, Home and End. All other keys keep their meaning.
function keys(across, down) {
  return event => {
    const known = {
      ArrowRight: () => across(1), ArrowLeft: () => across(-1),
      Home: () => across(-1, true), End: () => across(1, true),
      ArrowDown: () => down(1), ArrowUp: () => down(-1),
    }[event.key];
    if (!known || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own keys
    known();
  };
}

// Scrolls the strip only, and not the page.
function show_in(strip, word) {
  const low = word.offsetTop + word.offsetHeight - strip.clientHeight;
  if (strip.scrollTop < low || strip.scrollTop > word.offsetTop) strip.scrollTop = Math.max(0, low);
}
