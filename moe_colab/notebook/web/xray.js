// The x-ray: a text with the cost of each token, its routing below, and the experts in the slots.
//
// Knows the controls and the keys. replay.js counts, xray_words.js writes texts, xray_draw.js draws;
// root.view (xray_state.js) is the current state.

function xray(root) {
  const view = root.view = new XRay(root, unpack(root));
  build(view);
  hide_twin(root);
  view.recount();
  follow(view);
}

// ------------------------------------------------------------------ controls
function build(view) {
  const text = textOf(view), {bar, moved} = controlsOf(view), table = numbersOf(view);
  const grid = gridOf(view), states = statesOf(view), readout = readoutOf(view);
  view.root.append(
    make("div", {class: "title"}, heading(view)), text.box, moved.bar, readout.line, bar, table.box,
    make("div", {class: "name"}, "routing of each token, layer by layer: the number is the " +
      (view.data.probabilities ? "expert, the shade the router's probability" : "expert")), grid.box,
    states.name, states.box, legendOf(view), notesOf(view));
  view.parts = [text.show, moved.show, readout.show, table.show, grid.show, states.show];
}

function heading({data, tokens}) {
  const part = tokens < data.of ? ` (tokens ${data.first} to ${data.first + tokens - 1} of ${data.of})` : "";
  const row = data.rows > 1 ? `, row ${data.row} of ${data.rows}` : "";
  return `${data.model}: what ${tokens} token${tokens > 1 ? "s" : ""} cost${part}${row}`;
}

// quiet: changes too quickly for a screen reader.
function pin(view, token, quiet = false) {
  view.quiet = quiet;
  view.pinned = Math.max(0, Math.min(view.tokens - 1, token));
  view.hovered = null;
  view.show();
}

function hover(view, token, layer = view.layer) {
  if (token === view.hovered && layer === view.layer) return;
  view.hovered = token;
  view.layer = layer;
  view.show();
}

function choose(view, layer) {
  view.layer = Math.max(0, Math.min(view.layers - 1, layer));
  view.show();
}

// The keys are the same for the text and both pictures.
const ACROSS = {
  ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity,
};
function keys(view, after = () => {}) {
  return event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const across = ACROSS[event.key], down = {ArrowUp: -1, ArrowDown: 1}[event.key];
    if (across) pin(view, view.pinned + across);
    else if (down) choose(view, view.layer + down);
    else if (event.key === "Enter" || event.key === " ") pin(view, view.current);
    else return;
    event.preventDefault();
    event.stopPropagation();
    after();
  };
}

function controlsOf(view) {
  const {data} = view, changed = change => value => {
    change(value);
    view.shown = REPLAYED;
    show.select.value = REPLAYED;
    view.recount();
  };
  const show = menu("Show", [...data.recorded ? [["as recorded", RECORDED]] : [],
    ["replayed", REPLAYED]], view.shown, value => { view.shown = value; view.recount(); });
  const policy = menu("Policy", POLICIES, view.policy, changed(value => { view.policy = value; }));
  const slots = slider("Slots per layer", 1, view.widest, view.slots,
    changed(value => { view.slots = value; }));
  const bar = make("div", {class: "bar"}, show.whole, policy.whole, slots.whole);

  const place = slider("Token", data.first, data.first + view.tokens - 1, data.first + view.pinned,
    value => pin(view, value - data.first));
  const play = player(() => {
    if (view.pinned === view.tokens - 1) return false;
    pin(view, view.pinned + 1, true);
  }, 350);
  play.button.addEventListener("click", () => { if (view.pinned === view.tokens - 1) pin(view, 0); });
  const moved = {bar: make("div", {class: "bar move"}, play.button, place.whole),
    show: () => { place.set(data.first + view.pinned); }};
  return {bar, moved};
}

// ------------------------------------------------------------------ the pictures
function gridOf(view) {
  const pointed = touch => event => {
    const cell = under(view.drawn.grid, event);
    if (cell) touch(cell);
  };
  const canvas = make("canvas", {
    tabindex: 0, role: "application",
    "aria-label": "tokens by layers; use the arrow keys, and read the text above",
    mousemove: pointed(cell => hover(view, cell.token, cell.layer)),
    mouseleave: () => hover(view, null),
    click: pointed(cell => pin(view, cell.token)), keydown: keys(view),
  });
  const size = gridSize(view), room = make("div", {class: "room"}, canvas);
  room.style.width = `${size.width}px`;
  room.style.height = `${size.height}px`;
  const draw = () => drawGrid(view, canvas, box);
  const box = make("div", {class: "grid", scroll: draw}, room);
  let marked = null;
  const show = () => {
    const now = `${view.pinned} ${view.layer}`;
    if (marked !== now && view.hovered === null) scrollTo(view, box, size);
    marked = now;
    draw();
  };
  return {box, show};
}

function scrollTo(view, box, size) {
  const left = view.pinned * size.cell, top = view.layer * size.line;
  const width = box.clientWidth - MARGIN - size.cell, height = box.clientHeight - HEAD - size.line;
  if (left < box.scrollLeft || left > box.scrollLeft + width) box.scrollLeft = left - width / 2;
  if (top < box.scrollTop || top > box.scrollTop + height) box.scrollTop = top - height / 2;
}

function statesOf(view) {
  const name = make("div", {class: "name"});
  const plain = () => view.shown === RECORDED
    ? "the experts that this token's step needed (idle experts were not recorded)"
    : "the experts after this token's step: " + (view.widest > WIDEST_DIGITS
      ? "higher: with a slot; floating: used and not kept"
      : "framed: with a slot; dashed: used and not kept");
  const say = cell => {
    name.textContent = !cell ? plain()
      : `layer ${cell.layer}, expert ${cell.expert}: ${stateOf(view, cell)}`;
  };
  const canvas = make("canvas", {
    tabindex: 0, role: "application",
    "aria-label": "the experts of every layer; the text above describes one layer",
    mousemove: event => say(under(view.drawn.experts, event)),
    mouseleave: () => say(),
    click: event => choose(view, under(view.drawn.experts, event)?.layer ?? view.layer),
    keydown: keys(view),
  });
  const box = make("div", {class: "states"}, canvas);
  const show = () => {
    say();
    drawExperts(view, canvas, box.clientWidth - 2);
  };
  return {name, box, show};
}

function stateOf(view, {state}) {
  const unsaid = view.shown === RECORDED && state === AWAY;
  return unsaid ? "not needed (idle experts were not recorded)" : stateInWords(view, state);
}

// Draws again when the page changes its size or colours, while the view is on the page. In the next
// frame, because elements have no width while JupyterLab changes its theme.
function follow(view) {
  let asked = 0;
  const again = () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => { if (view.root.isConnected) view.show(); else stop(); });
  };
  const sized = new ResizeObserver(again), themed = new MutationObserver(again);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stop = () => {
    sized.disconnect();
    themed.disconnect();
    dark.removeEventListener("change", again);
  };
  sized.observe(view.root);
  const attributeFilter = ["theme", "data-jp-theme-light"];  // the ones that view.css uses
  for (const element of [document.documentElement, document.body]) {
    themed.observe(element, {attributes: true, attributeFilter});
  }
  dark.addEventListener("change", again);
}
