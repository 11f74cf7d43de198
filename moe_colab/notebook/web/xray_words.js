// The texts of an x-ray. Texts of tokens are always inserted as text, never as HTML.
//
// Knows the view (xray_state.js) and creates elements; changes the view by pin, hover and keys only.

const HOTTEST = 34;  // percent of a miss's colour behind a word, which stays readable

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

// The bar below a token: misses, late loads, speculative hits, hits.
function price(view, piece, token) {
  const cost = view.costs[token];
  const names = ["miss", "late", "speculative_hit", "hit", "unknown", "shared"];
  const parts = names.filter(name => cost[name]).map(name =>
    make("span", {class: name, style: `flex-grow:${cost[name]}`}));
  piece.querySelector(".cost").replaceChildren(...parts);
  const worst = names.find(name => cost[name]), glyphs = view.data.signs;
  const sign = {shared: "○", unknown: "?", hit: "●"}[worst] ?? (worst ? glyphs[worst].glyph : "–");
  const count = worst in glyphs && worst !== "hit" ? String(cost[worst]) : "";
  piece.querySelector(".sign").replaceChildren(make("b", {class: worst ?? ""}, sign), count);
  const all = names.reduce((sum, name) => sum + cost[name], 0);
  const heat = HOTTEST * (cost.miss + cost.late) / Math.max(1, all);
  piece.style.setProperty("--heat", `${Math.round(heat)}%`);
  piece.setAttribute("aria-label",
    `token ${view.data.first + token}, ${view.word(token)}: ${inWords(cost)}`);
}

function inWords(cost) {
  const names = {miss: ["miss", "misses"], late: ["late", "late"],
    speculative_hit: ["speculative hit", "speculative hits"], hit: ["hit", "hits"],
    unknown: ["of unknown outcome", "of unknown outcome"],
    shared: ["loaded for an earlier token of the step", "loaded for an earlier token of the step"]};
  const all = Object.entries(names).filter(([name]) => cost[name])
    .map(([name, [one, many]]) => `${cost[name]} ${cost[name] === 1 ? one : many}`);
  return `${all.join(", ") || "routed to no expert"}; ${megabytes(cost.bytes)} loaded`;
}

// Scrolls `box`, but not the page, until its child is visible.
function reveal(box, child) {
  const top = child.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  const over = top + child.offsetHeight - box.scrollTop - box.clientHeight;
  if (over > 0) box.scrollTop += over;
}

// ------------------------------------------------------------------ texts
function readoutOf(view) {
  const token = make("div", {}), layer = make("div", {class: "dim"});
  const line = make("div", {class: view.choices > 4 ? "readout more" : "readout", role: "status"}, token, layer);
  const show = () => {
    const now = view.current, {data} = view, phase = PHASE[data.phases.values[data.step.values[now]]];
    line.setAttribute("aria-live", view.quiet ? "off" : "polite");
    token.replaceChildren(make("b", {}, `token ${data.first + now} `),
      data.words[now] && make("bdi", {class: "quoted"}, view.word(now)),
      ` (${phase}): ${inWords(view.costs[now])}`);
    const chosen = view.chosen(now, view.layer).map(choice => choiceInWords(view, choice));
    layer.textContent = `layer ${view.layer}: ${chosen.join("; ") || "routed to no expert"}`;
  };
  return {line, show};
}

function choiceInWords(view, {expert, probability, state, first}) {
  const likely = probability === null ? "" : ` (${(100 * probability).toFixed(0)} %)`;
  return `expert ${expert}${likely} ${stateInWords(view, state)}${first ? "" : " (shared)"}`;
}

function stateInWords(view, state) {
  return {[AWAY]: "has no slot", [IDLE]: "has a slot, idle", [PASSING]: "miss, not kept",
    [UNKNOWN]: "needed, outcome not known"}[state] ?? view.data.signs[STATE[state]].name;
}

// The recording, the replay and Belady's bound, one per row.
function numbersOf(view) {
  const heads = ["", "hit rate, decoded", "hit rate, prompt", "loads", "bytes loaded"];
  const body = make("tbody", {});
  const box = make("table", {"aria-label": "all tokens and layers together"},
    make("thead", {}, make("tr", {}, ...heads.map(head => make("th", {scope: "col"}, head)))), body);
  const show = () => {
    const {recorded} = view.data, name = POLICIES.find(([, key]) => key === view.policy)[0];
    view.numbers = [
      ...recorded
        ? [[RECORDED, `recorded${recorded.name && ": "}${recorded.name}`, recorded.books]] : [],
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
    make("span", {}, make("b", {}, "○"), " shared: loaded for an earlier token of the same step"));
}

function notesOf(view) {
  const {data, widest, choices} = view;
  const start = data.begins ? "the trace's beginning"
    : `token ${data.first}, because earlier tokens do not fit into this view`;
  const notes = [
    "In one step (a whole prompt is one step) an expert is loaded at most once; the load counts for the first token that needs it.",
    `A replay begins with empty slots at ${start} and has no guesses. Belady knows the future up to ` +
      "the last token of this view.",
    data.rest_of.values.length &&
      "The table counts all tokens of the steps from there on, including tokens that are not shown.",
    data.recorded ? "The recording counts the loads that layers needed, not the loads of guesses."
      : "The trace has no recorded loads.",
    !data.probabilities && "The trace has no router probabilities, so there is no shade.",
    data.whole_layer &&
      "Whole layers were loaded: loads that no token needed count in the first row only.",
    widest > WIDEST_DIGITS && "A tick is an expert: low without a slot, higher with one, full " +
      "and with its number at the right if it was used.",
    choices > gridSize(view).chips &&
      "Beside a number: the router's further choices; higher is more expensive.",
    "Keys: ← → tokens, ↑ ↓ layers, Home, End; click or Enter pins.",
  ];
  return make("div", {class: "notes dim"}, notes.filter(note => note).join(" "));
}
