// The replay of a routing under another cache: counts on the page what mc.replay counts.
//
// Knows experts, slots and policies, with the same victims as cache/policies.py and cache/belady.py;
// knows no tokens and no page, and keeps no state.
// needed[step][layer] is the ascending list of the experts that a step needs in a layer.

// The state of an expert after a step. A replay has no guesses: SPECULATIVE, LATE and UNKNOWN occur
// in recordings only. PASSING: loaded and used, but without a slot.
const AWAY = 0, IDLE = 1, HIT = 2, SPECULATIVE = 3, LATE = 4, MISS = 5, PASSING = 6, UNKNOWN = 7;

const POLICIES = [
  ["LRU", "lru"], ["LFU", "lfu"], ["FIFO", "fifo"], ["nothing kept", "none"],
  ["Belady", "optimal"], ["Belady with bypass", "optimal-bypass"],
];

// ------------------------------------------------------------------ eviction
class LRU {
  constructor(experts) {
    this.last = new Array(experts).fill(-1);
    this.clock = 0;
  }
  observe(used) { for (const expert of used) this.last[expert] = this.clock++; }
  admit() {}
  victim(candidates) { return least(candidates, this.last, this.last); }
}

class LFU extends LRU {
  constructor(experts) {
    super(experts);
    this.uses = new Array(experts).fill(0);
  }
  observe(used) {
    super.observe(used);
    for (const expert of used) this.uses[expert]++;
  }
  victim(candidates) { return least(candidates, this.uses, this.last); }
}

class FIFO {
  constructor(experts) {
    this.arrival = new Array(experts).fill(0);
    this.clock = 0;
  }
  observe() {}
  admit(expert) { this.arrival[expert] = this.clock++; }
  victim(candidates) { return least(candidates, this.arrival, this.arrival); }
}

// The candidate with the smallest value; among equals, the one with the smallest second value.
function least(candidates, value, second) {
  return candidates.reduce((best, expert) =>
    value[expert] < value[best] || (value[expert] === value[best] && second[expert] < second[best])
      ? expert : best);
}

// ------------------------------------------------------------------ caches
// `access` returns {expert, hit, victim, keep} for each expert that is needed.
class LayerCache {
  constructor(policy, slots) {
    this.policy = policy;
    this.slots = slots;
    this.resident = new Set();
  }
  access(needed) {
    this.policy.observe(needed);
    const hits = needed.filter(expert => this.resident.has(expert));
    const missing = needed.filter(expert => !this.resident.has(expert));
    return [...hits.map(expert => ({expert, hit: true})),
      ...missing.map(expert => this.load(expert, needed))];
  }
  load(expert, needed) {
    if (!this.slots) return {expert, hit: false, keep: false};
    let victim;
    if (this.resident.size >= this.slots) {
      const spare = [...this.resident].filter(other => !needed.includes(other));
      victim = this.policy.victim(spare.length ? spare : [...this.resident]);
      this.resident.delete(victim);
    }
    this.resident.add(expert);
    this.policy.admit(expert);
    return {expert, hit: false, victim, keep: true};
  }
}

// Belady's cache: keeps the experts that are needed soonest. asked: all accesses of the layer.
class OptimalCache {
  constructor(asked, slots, bypass) {
    this.slots = slots;
    this.bypass = bypass;
    this.resident = new Set();
    this.coming = nextUses(asked);
    this.next = new Map();
    this.step = 0;
  }
  access(needed) {
    const coming = this.coming[this.step++];
    needed.forEach((expert, place) => this.next.set(expert, coming[place]));
    const hits = needed.filter(expert => this.resident.has(expert));
    const missing = needed.filter(expert => !this.resident.has(expert));
    const steps = hits.map(expert => ({expert, hit: true}));
    return missing.length ? [...steps, ...this.loads(needed, missing)] : steps;
  }
  loads(needed, missing) {
    const kept = this.keep(needed);
    const leaving = [...this.resident].filter(expert => !kept.has(expert)).sort(ascending);
    // Without a bypass a load that does not stay still uses a slot, if there is one.
    const scratch = this.bypass || leaving.length + missing.filter(e => kept.has(e)).length === 0;
    const admitted = missing.filter(expert => kept.has(expert));
    if (!scratch) admitted.unshift(...missing.filter(expert => !kept.has(expert)));
    leaving.push(...admitted.filter(expert => !kept.has(expert)));
    const free = admitted.length - leaving.length;  // the first ones take an empty slot
    const victims = new Map(admitted.map((expert, place) => [expert, leaving[place - free]]));
    this.resident = kept;
    return missing.map(expert =>
      ({expert, hit: false, victim: victims.get(expert), keep: victims.has(expert)}));
  }
  // The experts in the slots after an access.
  keep(needed) {
    const tight = this.bypass || needed.length > this.slots;
    const first = tight ? [] : needed;
    const others = new Set([...(tight ? needed : []),
      ...(this.bypass || !tight ? this.resident : [])]);
    for (const expert of first) others.delete(expert);
    const soonest = [...others].sort(
      (a, b) => this.next.get(a) === this.next.get(b) ? a - b : this.next.get(a) - this.next.get(b));
    return new Set([...first, ...soonest.slice(0, this.slots - first.length)]);
  }
}

// For every expert of every access: the index of the next access that needs it.
function nextUses(asked) {
  const after = new Map(), out = [];
  for (let number = asked.length - 1; number >= 0; number--) {
    out[number] = asked[number].map(expert => after.get(expert) ?? Infinity);
    for (const expert of asked[number]) after.set(expert, number);
  }
  return out;
}

function ascending(a, b) { return a - b; }

// ------------------------------------------------------------------ all layers
// The whole replay from empty slots: {states, books}. states[(step * layers + layer) * widest + expert]
// is one of the states above; books[phase][layer] counts. If slots >= experts, a layer holds all.
// phases[step]: 0 for a prompt, 1 for a decoded token; bytes[layer]: the size of one expert.
function replay(needed, phases, experts, bytes, policy, slots) {
  const widest = Math.max(...experts), layers = experts.length;
  const states = new Uint8Array(needed.length * layers * widest);
  const books = [0, 1].map(() => experts.map(newBook));
  experts.forEach((count, layer) => {
    const asked = needed.map(step => step[layer]);
    const cache = makeCache(policy, asked, count, Math.min(slots, count));
    asked.forEach((wanted, step) => {
      const taken = cache.access(wanted);
      note(books[phases[step]][layer], taken, bytes[layer]);
      const start = (step * layers + layer) * widest;
      for (const expert of cache.resident) states[start + expert] = IDLE;
      for (const {expert, hit} of taken) {
        states[start + expert] = hit ? HIT : cache.resident.has(expert) ? MISS : PASSING;
      }
    });
  });
  return {states, books};
}

function makeCache(policy, asked, experts, slots) {
  if (policy.startsWith("optimal")) return new OptimalCache(asked, slots, policy !== "optimal");
  const rule = {lru: LRU, lfu: LFU, fifo: FIFO, none: FIFO}[policy];
  return new LayerCache(new rule(experts), policy === "none" ? 0 : slots);
}

function newBook() {
  return {accesses: 0, hits: 0, misses: 0, loads: 0, evictions: 0, bypasses: 0, bytes_loaded: 0};
}

function note(book, taken, bytes) {
  for (const {hit, victim, keep} of taken) {
    book.accesses++;
    if (hit) { book.hits++; continue; }
    book.misses++;
    book.loads++;
    book.evictions += victim !== undefined;
    book.bypasses += !keep;
    book.bytes_loaded += bytes;
  }
}
