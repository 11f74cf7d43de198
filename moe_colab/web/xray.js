// The x-ray: a text, each token with what it cost; below it where it was sent, and who lay where.
//
// Knows the data of moe_colab/xray.py, the controls and what they change. replay.js counts,
// xray_draw.js paints. root.view is all that is shown now: tests and the painter read it.

const RECORDED = "recorded", REPLAYED = "replayed";
const STATE = ["away", "idle", "hit", "speculative_hit", "late", "miss", "passing", "unknown"];
const PHASE = ["prompt", "decode"];

function xray(root) {
  root.dataset.lmSuppressShortcuts = "true";  // or JupyterLab would take the arrow keys
  const view = root.view = new XRay(root, unpack(root));
  build(view);
  hide_twin(root);
  view.recount();
  follow(view);
}

// ------------------------------------------------------------------ what is known
class XRay {
  constructor(root, data) {
    Object.assign(this, {root, data, experts: data.experts});
    [this.tokens, this.layers, this.choices] = data.routing.shape;
    this.widest = Math.max(...data.experts);
    this.needed = neededOf(data);
    this.phases = [...data.phases.values];
    this.pinned = this.firstDecoded();
    this.hovered = null;
    this.layer = 0;
    this.shown = data.recorded ? RECORDED : REPLAYED;
    this.policy = data.policy;
    this.slots = data.slots;
    this.drawn = {grid: [], experts: []};
    this.replays = new Map();
  }
  get current() { return this.hovered ?? this.pinned; }
  firstDecoded() {
    return Math.max(0, [...this.data.step.values].findIndex(step => this.data.phases.values[step]));
  }
  replay(policy) {
    const key = `${policy} ${this.slots}`;
    if (!this.replays.has(key)) {
      if (this.replays.size > 7) this.replays.clear();  // they are large
      this.replays.set(key, replay(
        this.needed, this.phases, this.experts, this.data.bytes, policy, this.slots));
    }
    return this.replays.get(key);
  }
  // The choices of a token's router, the likeliest first, and what became of them.
  chosen(token, layer) {
    const {routing, chances, fates, nobody, step} = this.data, out = [];
    for (let rank = 0; rank < this.choices; rank++) {
      const place = (token * this.layers + layer) * this.choices + rank;
      const expert = routing.values[place];
      if (expert === nobody) continue;
      const fate = fates.values[place >> 1] >> 4 * (place & 1) & 15;
      const told = chances && chances.values[place];
      const state = this.shown === RECORDED ? told_state(fate & 7)
        : this.replay(this.policy).states[this.place(step.values[token], layer) + expert];
      out.push({expert, chance: told ? (told - 1) / 254 : null, state, paid: fate > 7});
    }
    return out;
  }
  place(step, layer) { return (step * this.layers + layer) * this.widest; }
  // What every expert of a layer is at the current token's step. Who lay idle is not recorded.
  states(layer) {
    const step = this.data.step.values[this.current], start = this.place(step, layer);
    if (this.shown === REPLAYED) {
      return this.replay(this.policy).states.subarray(start, start + this.experts[layer]);
    }
    const out = new Uint8Array(this.experts[layer]);
    for (const expert of this.needed[step][layer]) out[expert] = UNKNOWN;  // by hidden tokens
    for (let token = 0; token < this.tokens; token++) {
      if (this.data.step.values[token] !== step) continue;
      for (const {expert, state} of this.chosen(token, layer)) out[expert] = state;
    }
    return out;
  }
  // What a token cost over all layers: {away: 0, ..., hit: 3, miss: 1, shared: 2, bytes}.
  cost(token) {
    const out = {hit: 0, speculative_hit: 0, late: 0, miss: 0, unknown: 0, shared: 0, bytes: 0};
    for (let layer = 0; layer < this.layers; layer++) {
      for (const {state, paid} of this.chosen(token, layer)) {
        const name = state === PASSING ? "miss" : STATE[state];
        out[paid ? name : "shared"]++;
        if (paid && name === "miss") out.bytes += this.data.bytes[layer];
      }
    }
    return out;
  }
  word(token) {
    const word = this.data.words[token];
    return word.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +$/, "␣") || String(this.data.first + token);
  }
  recount() {
    this.costs = Array.from({length: this.tokens}, (_, token) => this.cost(token));
    this.show();
  }
  show() { for (const part of this.parts) part(); }
}

function told_state(fate) { return [UNKNOWN, HIT, SPECULATIVE, LATE, MISS][fate]; }

// What every step asks every layer for: by the tokens that are shown, and by the others.
function neededOf(data) {
  const [tokens, layers, choices] = data.routing.shape, steps = data.phases.shape[0];
  const asked = Array.from({length: steps}, () => data.experts.map(() => new Set()));
  data.routing.values.forEach((expert, place) => {
    const layer = Math.floor(place / choices) % layers, token = Math.floor(place / choices / layers);
    if (expert !== data.nobody) asked[data.step.values[token]][layer].add(expert);
  });
  const bytes = data.rest.shape[2];
  data.rest.values.forEach((bits, place) => {
    const layer = Math.floor(place / bytes) % layers, which = Math.floor(place / bytes / layers);
    for (let bit = 0; bit < 8; bit++) {
      if (bits >> bit & 1) asked[data.rest_of.values[which]][layer].add(place % bytes * 8 + bit);
    }
  });
  return asked.map(step => step.map(set => [...set].sort(ascending)));
}

// ------------------------------------------------------------------ what moves it
function build(view) {
  const text = textOf(view), {bar, moved} = controlsOf(view), table = numbersOf(view);
  const grid = gridOf(view), states = statesOf(view), told = readoutOf(view);
  view.root.append(
    make("div", {class: "title"}, heading(view)), text.box, moved.bar, told.line, bar, table.box,
    make("div", {class: "name"}, "where each token was sent: the number is the expert, the shade " +
      "the router's probability"), grid.box,
    states.name, states.box, legendOf(view), notesOf(view));
  view.parts = [text.show, moved.show, told.show, table.show, grid.show, states.show];
}

function heading({data, tokens}) {
  const part = tokens < data.of ? `, tokens ${data.first} to ${data.first + tokens - 1} of ${data.of}` : "";
  return `${data.model}: what ${tokens} token${tokens > 1 ? "s" : ""} cost${part}`;
}

function pin(view, token) {
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

// One set of keys for the text and both pictures.
function keys(view, after = () => {}) {
  return event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity}[event.key];
    const up = {ArrowUp: -1, ArrowDown: 1}[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (move) pin(view, view.pinned + move);
    else if (up) { view.layer = Math.max(0, Math.min(view.layers - 1, view.layer + up)); view.show(); }
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
  const slots = slider("Slots a layer", 1, view.widest, view.slots, changed(value => { view.slots = value; }));
  const bar = make("div", {class: "bar"}, show.whole, policy.whole, slots.whole);

  const place = slider("Token", 0, view.tokens - 1, view.pinned, value => pin(view, value));
  const play = player(() => {
    if (view.pinned === view.tokens - 1) return false;
    pin(view, view.pinned + 1);
  }, 350);
  play.button.addEventListener("click", () => { if (view.pinned === view.tokens - 1) pin(view, 0); });
  const moved = {bar: make("div", {class: "bar move"}, play.button, place.whole),
    show: () => { place.set(view.pinned); }};
  return {bar, moved};
}

// ------------------------------------------------------------------ the text
function textOf(view) {
  const pieces = view.data.words.map((_, token) => pieceOf(view, token));
  const box = make("div", {
    class: "text", role: "listbox", "aria-label": "the text, token by token",
    "aria-orientation": "horizontal", mouseleave: () => hover(view, null),
    keydown: keys(view, () => pieces[view.pinned].focus({preventScroll: true})),
  });
  view.data.words.forEach((word, token) => {
    box.append(pieces[token]);
    if (word.includes("\n")) box.append(make("br"));
  });
  let priced = null, marked = null;
  const show = () => {
    if (priced !== view.costs) pieces.forEach((piece, token) => price(view, piece, token));
    priced = view.costs;
    pieces.forEach((piece, token) => {
      piece.classList.toggle("now", token === view.current);
      piece.setAttribute("aria-selected", token === view.pinned);
      piece.tabIndex = token === view.pinned ? 0 : -1;
    });
    if (marked !== view.pinned) reveal(box, pieces[view.pinned]);
    marked = view.pinned;
  };
  return {box, show};
}

function pieceOf(view, token) {
  return make("span", {
    class: "token", role: "option", "data-token": token,
    mouseenter: () => hover(view, token),
    click: event => { pin(view, token); event.currentTarget.focus({preventScroll: true}); },
  }, make("span", {class: "word", dir: "auto"}, view.word(token)),
  make("span", {class: "cost"}), make("span", {class: "sign"}));
}

// The bar below a token, as long as it is: misses, late ones, speculative hits, hits.
function price(view, piece, token) {
  const cost = view.costs[token], names = ["miss", "late", "speculative_hit", "hit", "unknown", "shared"];
  const parts = names.filter(name => cost[name]).map(name =>
    make("span", {class: name, style: `flex-grow:${cost[name]}`}));
  piece.querySelector(".cost").replaceChildren(...parts);
  const worst = names.find(name => cost[name]), glyphs = view.data.signs;
  const sign = {shared: "○", unknown: "?", hit: "●"}[worst] ?? (worst ? glyphs[worst].glyph : "–");
  const count = worst in glyphs && worst !== "hit" ? String(cost[worst]) : "";
  piece.querySelector(".sign").replaceChildren(make("b", {class: worst ?? ""}, sign), count);
  const all = names.reduce((sum, name) => sum + cost[name], 0);
  piece.style.setProperty("--heat", `${Math.round(34 * (cost.miss + cost.late) / Math.max(1, all))}%`);
  piece.setAttribute("aria-label", `token ${view.data.first + token}, ${view.word(token)}: ${inWords(cost)}`);
}

function inWords(cost) {
  const names = {miss: ["miss", "misses"], late: ["late", "late"],
    speculative_hit: ["speculative hit", "speculative hits"], hit: ["hit", "hits"],
    unknown: ["of unknown outcome", "of unknown outcome"],
    shared: ["paid by an earlier token of the step", "paid by an earlier token of the step"]};
  const told = Object.entries(names).filter(([name]) => cost[name])
    .map(([name, [one, many]]) => `${cost[name]} ${cost[name] === 1 ? one : many}`);
  return `${told.join(", ") || "sent nowhere"}; ${megabytes(cost.bytes)} loaded`;
}

// Scroll `box`, and nothing else on the page, until its child can be seen.
function reveal(box, child) {
  const top = child.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  const over = top + child.offsetHeight - box.scrollTop - box.clientHeight;
  if (over > 0) box.scrollTop += over;
}

// ------------------------------------------------------------------ what is told in words
function readoutOf(view) {
  const token = make("div", {}), layer = make("div", {class: "dim"});
  const line = make("div", {class: "told", role: "status", "aria-live": "polite"}, token, layer);
  const show = () => {
    const now = view.current, {data} = view, phase = PHASE[data.phases.values[data.step.values[now]]];
    token.replaceChildren(make("b", {}, `token ${data.first + now} `),
      data.words[now] && make("bdi", {class: "quoted"}, view.word(now)),
      ` (${phase}): ${inWords(view.costs[now])}`);
    layer.textContent = `layer ${view.layer}: ${view.chosen(now, view.layer).map(choice => choiceInWords(view, choice)).join("; ") || "sent nowhere"}`;
  };
  return {line, show};
}

function choiceInWords(view, {expert, chance, state, paid}) {
  const likely = chance === null ? "" : ` (${(100 * chance).toFixed(0)} %)`;
  return `expert ${expert}${likely} ${stateInWords(view, state)}${paid ? "" : ", paid by an earlier token"}`;
}

function stateInWords(view, state) {
  return {[AWAY]: "has no slot", [IDLE]: "has a slot, idle", [PASSING]: "miss, not kept",
    [UNKNOWN]: "outcome not known"}[state] ?? view.data.signs[STATE[state]].name;
}

// The recording, the replay and Belady's bound, each in a line.
function numbersOf(view) {
  const body = make("tbody", {}), heads = ["", "hit rate, decoded", "hit rate, prompt", "loads", "moved"];
  const box = make("table", {"aria-label": "all tokens and layers together"},
    make("thead", {}, make("tr", {}, ...heads.map(head => make("th", {scope: "col"}, head)))), body);
  const show = () => {
    const {recorded} = view.data, name = POLICIES.find(([, key]) => key === view.policy)[0];
    view.numbers = [
      ...recorded ? [[RECORDED, `recorded${recorded.name && ": "}${recorded.name}`, recorded.books]] : [],
      [REPLAYED, `replayed: ${name}, ${view.slots} slots`, summed(view.replay(view.policy).books)],
      ["bound", `Belady, ${view.slots} slots`, summed(view.replay("optimal").books)],
    ];
    body.replaceChildren(...view.numbers.map(([key, title, books]) => make("tr",
      {"data-row": key, class: key === view.shown ? "now" : null},
      make("th", {scope: "row"}, (key === view.shown ? "▸ " : "") + title),
      ...numbersIn(books, key === RECORDED && view.data.guesses ? " + guesses" : "")
        .map(number => make("td", {}, number)))));
  };
  return {box, show};
}

function summed(books) {
  return books.map(layers => layers.reduce((sum, book) => {
    for (const name in book) sum[name] += book[name];
    return sum;
  }, newBook()));
}

function numbersIn([prompt, decode], more) {
  const rate = ({accesses, hits, speculative_hits = 0}) =>
    accesses ? `${(100 * (hits + speculative_hits) / accesses).toFixed(1)} %` : "–";
  return [rate(decode), rate(prompt), (prompt.loads + decode.loads).toLocaleString("en") + more,
    megabytes(prompt.bytes_loaded + decode.bytes_loaded) + more];
}

function legendOf({data}) {
  const signs = Object.entries(data.signs).map(([key, {glyph, name, means}]) =>
    make("span", {}, make("b", {class: key}, glyph), ` ${name}: ${means}`));
  return make("div", {class: "legend dim"}, ...signs,
    make("span", {}, make("b", {}, "○"), " shared: an earlier token of the same step has paid"));
}

function notesOf({data, widest, choices}) {
  const start = data.begins ? "the trace's beginning" : `token ${data.first}: what came before does not fit in here`;
  const notes = [
    "In one step (a whole prompt is one) an expert is loaded once; the first token that needs it pays.",
    `A replay begins with empty slots at ${start}; it guesses nothing. Belady knows what comes, up to the last token here.`,
    data.recorded ? "Recorded are loads that were asked for, not those of guesses." : "What was loaded when this ran was not recorded.",
    data.chances ? null : "The router's probabilities are not known: there is no shade.",
    data.whole_layer ? "Whole layers were loaded: loads that no token needed count in the first line only." : null,
    widest > WIDEST_DIGITS ? "A tick is an expert: low without a slot, higher with one, full and named at the right if it was used." : null,
    choices > 2 ? "Beside a number: the router's further choices, the higher the costlier." : null,
    "Keys: ← → tokens, ↑ ↓ layers, Home, End; click or Enter pins.",
  ];
  return make("div", {class: "notes dim"}, notes.filter(note => note).join(" "));
}

// ------------------------------------------------------------------ the pictures
function gridOf(view) {
  const canvas = make("canvas", {
    tabindex: 0, role: "img", "aria-label": "tokens by layers; the arrow keys walk, the words above tell",
    mousemove: event => { const cell = under(view.drawn.grid, event); if (cell) hover(view, cell.token, cell.layer); },
    mouseleave: () => hover(view, null),
    click: event => { const cell = under(view.drawn.grid, event); if (cell) pin(view, cell.token); },
    keydown: keys(view),
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
    ? "the experts that this token's step needed (who lay idle was not recorded)"
    : `the experts after this token's step: ${view.widest > WIDEST_DIGITS ? "higher" : "framed"}, those that have a slot`;
  const say = cell => {
    name.textContent = cell ? `layer ${cell.layer}, expert ${cell.expert}: ${stateOf(view, cell)}` : plain();
  };
  const canvas = make("canvas", {
    tabindex: 0, role: "img", "aria-label": "the experts of every layer; the words above tell of one layer",
    mousemove: event => say(under(view.drawn.experts, event)),
    mouseleave: () => say(),
    click: event => { const cell = under(view.drawn.experts, event); if (cell) { view.layer = cell.layer; view.show(); } },
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
  return unsaid ? "not needed (who lay idle was not recorded)" : stateInWords(view, state);
}

// Draw again when the page changes its size or its colours, as long as the view is on it.
function follow(view) {
  const again = () => { if (view.root.isConnected) view.show(); else stop(); };
  const sized = new ResizeObserver(again), themed = new MutationObserver(again);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stop = () => { sized.disconnect(); themed.disconnect(); dark.removeEventListener("change", again); };
  sized.observe(view.root);
  for (const element of [document.documentElement, document.body]) {
    themed.observe(element, {attributes: true, attributeFilter: ["theme", "data-jp-theme-light", "class"]});
  }
  dark.addEventListener("change", again);
}
