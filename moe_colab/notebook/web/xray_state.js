// The state of an x-ray: the cache, token and layer it shows, and the outcome of every choice.
//
// Knows the data of views/xray.py, and replay.js; of the page it knows only `parts`, functions to
// call after a change.

const RECORDED = "recorded", REPLAYED = "replayed";
const STATE = ["away", "idle", "hit", "speculative_hit", "late", "miss", "passing", "unknown"];
const PHASE = ["prompt", "decode"];

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
      if (this.replays.size > 7) this.replays.clear();  // replays are large
      this.replays.set(key, replay(
        this.needed, this.phases, this.experts, this.data.bytes, policy, this.slots));
    }
    return this.replays.get(key);
  }
  // The choices of a token's router, the most probable first, with their outcomes.
  chosen(token, layer) {
    const {routing, probabilities, outcomes, no_expert, step} = this.data, out = [];
    for (let rank = 0; rank < this.choices; rank++) {
      const place = (token * this.layers + layer) * this.choices + rank;
      const expert = routing.values[place];
      if (expert === no_expert) continue;
      const outcome = outcomes.values[place >> 1] >> 4 * (place & 1) & 15;
      const code = probabilities && probabilities.values[place];
      const state = this.shown === RECORDED ? recordedState(outcome & 7)
        : this.replay(this.policy).states[this.place(step.values[token], layer) + expert];
      out.push({expert, probability: code ? (code - 1) / 254 : null, state, first: outcome > 7});
    }
    return out;
  }
  place(step, layer) { return (step * this.layers + layer) * this.widest; }
  // The state of every expert of a layer at the current token's step. Idle ones are not recorded.
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
  // The cost of a token over all layers: accesses by outcome, shared ones, and bytes.
  cost(token) {
    const out = {hit: 0, speculative_hit: 0, late: 0, miss: 0, unknown: 0, shared: 0, bytes: 0};
    for (let layer = 0; layer < this.layers; layer++) {
      for (const {state, first} of this.chosen(token, layer)) {
        const name = state === PASSING ? "miss" : STATE[state];
        out[first ? name : "shared"]++;
        if (first && name === "miss") out.bytes += this.data.bytes[layer];
      }
    }
    return out;
  }
  word(token) {
    const word = this.data.words[token].replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +$/, "␣");
    return word || String(this.data.first + token);
  }
  recount() {
    this.costs = Array.from({length: this.tokens}, (_, token) => this.cost(token));
    this.show();
  }
  show() { for (const part of this.parts) part(); }
}

function recordedState(outcome) { return [UNKNOWN, HIT, SPECULATIVE, LATE, MISS][outcome]; }

// The experts that every step needs in every layer, for visible tokens and the others.
function neededOf(data) {
  const [tokens, layers, choices] = data.routing.shape, steps = data.phases.shape[0];
  const asked = Array.from({length: steps}, () => data.experts.map(() => new Set()));
  data.routing.values.forEach((expert, place) => {
    const layer = Math.floor(place / choices) % layers, token = Math.floor(place / choices / layers);
    if (expert !== data.no_expert) asked[data.step.values[token]][layer].add(expert);
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
