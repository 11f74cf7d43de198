// The nine steps of a token in a layer. Draws the data of views/stepper.py; softmax, scores and sums
// are computed in Python.

const STEPS = [
  ["input", "The token arrives at the layer"],
  ["logits", "The router computes a number for every expert"],
  ["probabilities", "The numbers become probabilities"],
  ["top-k", "The most probable experts are chosen"],
  ["cache", "Are they in the layer's slots?"],
  ["eviction", "Which expert is evicted, and why"],
  ["copy", "Missing experts are copied"],
  ["guess", "The next layer's experts are guessed"],
  ["outputs", "The experts' outputs are weighted and added"],
];

// ------------------------------------------------------------------ data
function token_step_of(data, i, layer) {
  const [resident, accesses, guess] = data.token_steps[i][layer], count = data.experts[layer];
  const logits = slice(data.logits, data, i, layer).map(half);
  const shares = slice(data.probabilities, data, i, layer).map(share => share / 65535);
  return {
    i, layer, resident, guess, count, logits: logits.slice(0, count), probabilities: shares.slice(0, count),
    known: logits.length > 0 && !Number.isNaN(logits[0]),
    accesses: accesses.map(([expert, outcome, wait, kept, eviction]) => {
      const [name, glyph, means] = data.signs[outcome];
      return {expert, outcome, name, glyph, means, wait, kept, eviction};
    }),
  };
}

// The numbers of one token and layer in an array [N, L, ...]; null if there is no such array.
function slice(array, data, i, layer) {
  if (!array) return [];
  const size = array.values.length / (data.texts.length * data.experts.length);
  const from = (i * data.experts.length + layer) * size;
  return [...array.values.slice(from, from + size)];
}

// The value of a float16.
function half(bits) {
  const sign = bits >> 15 ? -1 : 1, power = bits >> 10 & 31, rest = bits & 1023;
  if (power === 31) return rest ? NaN : sign * Infinity;
  return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : rest * 2 ** -24);
}

// The vectors of one token and layer: rows of [norm, first numbers ...].
function rows_of(array, data, token_step) {
  const wide = array.shape.at(-1), values = slice(array, data, token_step.i, token_step.layer);
  return Array.from({length: values.length / wide}, (_, k) => values.slice(k * wide, (k + 1) * wide));
}

function weights_of(data, token_step) {
  return slice(data.weights, data, token_step.i, token_step.layer).slice(0, token_step.accesses.length);
}

// ------------------------------------------------------------------ words
function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +$/, spaces => "␣".repeat(spaces.length));
}

const word_of = (data, i) => visible(data.texts[i]) || `#${data.tokens[i][0]}`;

function place_of(data, i) {
  const [position, phase, together] = data.tokens[i];
  return `token ${data.first + i}, position ${position}, ` +
    (together > 1 ? `one of ${together} in the same step` : phase === "prompt" ? "the first one, alone" : "decoded");
}

function about(data) {
  const [policy, slots] = data.cache;
  const each = new Set(slots).size === 1 ? `${slots[0]} slots per layer` : `${slots.join(", ")} slots`;
  return `${data.model} · ${data.experts.length} MoE layers · ${policy}, ${each}`;
}

function short(number) {
  const size = Math.abs(number);
  return size === 0 ? "0" : size >= 1e5 || size < 1e-3 ? number.toExponential(1)
    : number.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

const percent = share => `${(100 * share).toFixed(1)} %`;
const say = (...parts) => make("p", {}, ...parts);
const dim = text => make("p", {class: "dim"}, text);
const NOT_HELD = "This trace has no router logits, only the chosen experts.";

// ------------------------------------------------------------------ drawings
// A bar with its name and number; `from`, `to` and `line` are shares of the width, 0 to 1.
function bar(name, from, to, number, line) {
  const style = `left:${100 * Math.min(from, to)}%;width:${100 * Math.abs(to - from)}%`;
  return make("div", {class: "row", "data-expert": name},
    make("span", {class: "name"}, String(name)),
    make("span", {class: "track"}, make("i", {style}), make("u", {style: `left:${100 * line}%`})),
    make("span", {class: "number"}, number));
}

function bars(rows) {
  return make("div", {class: rows.length > 16 ? "bars many" : "bars"}, ...rows);
}

// A table; cells are texts or elements.
function table(heads, rows, name) {
  const cell = (tag, value) => make(tag, tag === "th" ? {scope: "col"} : {}, value instanceof Node ? value : String(value));
  return make("div", {class: "wide"}, make("table", {"aria-label": name},
    make("thead", {}, make("tr", {}, ...heads.map(head => cell("th", head)))),
    make("tbody", {}, ...rows.map(row => make("tr", {"data-expert": row[0] instanceof Node ? null : row[0]},
      ...row.map(value => cell("td", value)))))));
}

// A signed number with a bar that begins in the middle.
function signed(number, most) {
  const share = most ? 50 * Math.abs(number) / most : 0;
  const style = `width:${share}%;left:${number < 0 ? 50 - share : 50}%`;
  return make("span", {class: "signed"}, make("i", {style}), make("span", {}, short(number)));
}

function sign(access) {
  return make("span", {class: `sign ${access.name.replace(" ", "-")}`},
    make("b", {"aria-hidden": "true"}, access.glyph), ` ${access.name}`);
}

// A word with its sign.
function judged(kind, glyph, word) {
  return make("span", {class: kind}, make("b", {"aria-hidden": "true"}, glyph), ` ${word}`);
}

const DRAWN = [arrives, logits, probabilities, top_k, slots, evicted, copied, guessed, outputs];

function arrives(data, token_step) {
  const {i, layer} = token_step, together = data.tokens[i][2];
  const out = [say("The token ", make("q", {}, make("bdi", {class: "token"}, word_of(data, i))),
    ` (${place_of(data, i)}) has come to MoE layer ${layer} of ${data.experts.length}. `,
    together > 1 ? "All tokens of a step are routed together, and their experts are loaded together." : "")];
  if (!data.input) {
    return [...out, dim("A trace has no hidden states: give mc.stepper a model to see them.")];
  }
  const [norm, ...values] = rows_of(data.input, data, token_step)[0];
  const most = Math.max(...values.map(Math.abs));
  return [...out, say(`The input of router and experts is a vector of ${data.hidden} numbers, with norm `,
    make("b", {class: "norm"}, short(norm)), `. The first ${values.length}:`),
  make("div", {class: "vector"}, ...values.map(value => signed(value, most)))];
}

function logits(data, token_step) {
  if (!token_step.known) return [dim(NOT_HELD)];
  const least = Math.min(0, ...token_step.logits), most = Math.max(0, ...token_step.logits);
  const at = value => most > least ? (value - least) / (most - least) : 0;
  return [say(`One logit for each of the layer's ${token_step.count} experts; the line is 0.`),
    bars(token_step.logits.map((value, expert) =>
      bar(expert, at(0), at(value), short(value), at(0))))];
}

function probabilities(data, token_step) {
  if (!token_step.known) return [dim(NOT_HELD)];
  const most = Math.max(...token_step.probabilities), even = 1 / token_step.count;
  return [say(`The softmax of the logits; they sum to 1. The line is a uniform distribution, ${percent(even)}.`),
    bars(token_step.probabilities.map((share, expert) =>
      bar(expert, 0, share / most, percent(share), even / most)))];
}

function top_k(data, token_step) {
  const weights = data.weights && weights_of(data, token_step);
  const heads = ["expert", ...(token_step.known ? ["logit", "probability"] : []), ...(weights ? ["weight"] : [])];
  const rows = token_step.accesses.map(({expert}, rank) => [expert,
    ...(token_step.known ? [short(token_step.logits[expert]), percent(token_step.probabilities[expert])] : []),
    ...(weights ? [make("b", {}, short(weights[rank]))] : [])]);
  const note = weights ? "The weights are those of this model's own routing rule."
    : "A trace has no weights: give mc.stepper a model to see them.";
  return [say(`${token_step.accesses.length} of ${token_step.count}, most probable first.`), table(heads, rows, "Chosen experts"), dim(note)];
}

function slots(data, token_step) {
  const [policy, counts] = data.cache, needed = new Map(token_step.accesses.map(access => [access.expert, access]));
  const cells = Array.from({length: token_step.count}, (_, expert) => {
    const access = needed.get(expert), there = token_step.resident.includes(expert);
    return make("li", {class: `${there ? "there" : "away"}${access ? " needed" : ""}`, "data-expert": expert},
      make("b", {}, String(expert)), make("small", {}, there ? "in a slot" : "no slot"), access ? sign(access) : null);
  });
  const lines = token_step.accesses.map(access => say(sign(access), `: expert ${access.expert}. ${sentence(access.means)}.`));
  const together = data.tokens[token_step.i][2];
  return [say(`${token_step.resident.length} of ${token_step.count} experts are in this layer's ${counts[token_step.layer]} slots (${policy}) when the router has decided.` +
      (together > 1 ? ` All ${together} tokens of the step need their experts.` : "")),
    make("ol", {class: "cells", "aria-label": "Experts of the layer"}, ...cells), ...lines,
    data.recorded ? null : dim("This is a replay that starts with empty slots and has no guesses, so it differs from the recording.")].filter(Boolean);
}

const sentence = text => text[0].toUpperCase() + text.slice(1);

const MEASURES = { // the numbers that the built-in policies compare
  "last use": "“Last use” numbers the accesses of this layer: higher is later.",
  "uses": "“Uses” counts all uses of the expert so far.",
  "arrival": "“Arrival” numbers the loads into this layer's slots: higher is later.",
  "next use": "“Next use” is the next forward pass that needs the expert: only a replay knows it.",
};

function evicted(data, token_step) {
  const missing = token_step.accesses.filter(access => !token_step.resident.includes(access.expert));
  if (!missing.length) return [say("No eviction: all needed experts are in slots.")];
  const known = data.cache[2].map(name => MEASURES[name] ?? "");
  return [make("div", {class: "choices"}, ...missing.map(access => eviction_of(data, token_step, access))),
    dim([...known, "Experts that this forward pass needs are evicted only if there are no others."].join(" "))];
}

// The eviction for one missing expert, and the candidates.
function eviction_of(data, token_step, {expert, eviction, kept}) {
  const [policy, counts, measures, rule] = data.cache;
  if (!eviction) {
    return make("div", {}, say(kept ? `Expert ${expert} takes a free slot: no eviction.`
      : `Expert ${expert} is loaded, used and not kept: ${counts[token_step.layer] ? "its slot is needed for another expert" : `${policy} keeps no expert`}.`));
  }
  const [victim, scores] = eviction, line = make("b", {}, victim === expert
    ? `Expert ${expert} is loaded and used, but not kept` : `Expert ${victim} is evicted for expert ${expert}`);
  if (!scores.length) return make("div", {}, say(line, `. ${policy} gives no reason.`));
  const rows = scores.map(([one, ...score]) =>
    [one, ...score.map(value => value ?? "never"), one === victim ? judged("goes", "✕", "evicted") : "stays"]);
  return make("div", {}, say(line, `: ${policy} compares ${measures.join(", then ")}, and ${rule}.`),
    table(["expert", ...measures, ""], rows, `Candidates for eviction, for expert ${expert}`));
}

function copied(data, token_step) {
  const size = data.bytes[token_step.layer], seconds = 1e3 * size / data.link;
  const rows = token_step.accesses.map(access => {
    const there = token_step.resident.includes(access.expert);
    return [access.expert, sign(access), there ? "nothing" : megabytes(size), there ? "0 ms" : `${short(seconds)} ms`,
      access.wait === null ? "not recorded" : `${short(access.wait)} ms`];
  });
  return [say(`An expert of this layer takes ${megabytes(size)} (${size.toLocaleString("en")} bytes).`),
    table(["expert", "", "copied", `at ${megabytes(data.link)}/s`, "waited"], rows, "Copies"),
    dim("“Waited” is the measured time that compute waited in the recording. It is zero if a guess had loaded the expert, or if the copy ended while another expert was computed.")];
}

function guessed(data, token_step) {
  if (token_step.layer === data.experts.length - 1) return [say("This is the last MoE layer: there is no next layer to guess for.")];
  if (!token_step.guess) return [say("No guess here: all of the next layer's experts were in slots, or prefetching was off.")];
  const [made, needed] = token_step.guess, right = made.filter(guess => guess[2]).length;
  const rows = made.map(([expert, share, came]) =>
    [expert, percent(share), came ? judged("right", "✓", "right") : judged("wrong", "✗", "wrong")]);
  const named = made.map(guess => guess[0]), unnamed = needed.filter(expert => !named.includes(expert));
  return [say(`The router of layer ${token_step.layer + 1} gets the present hidden state early: ${right} of ${made.length} guesses were right.`),
    table(["expert", "probability", "guess"], rows, "Guesses"),
    say(`It then chose ${needed.length > 1 ? "experts" : "expert"} ${needed.join(", ")}` +
      (unnamed.length ? `; of these, not guessed: ${unnamed.join(", ")}.` : ": all of them had been guessed."))];
}

function outputs(data, token_step) {
  if (!data.outputs) {
    return [say("A trace has no outputs of experts: give mc.stepper a model to see them.")];
  }
  const weights = weights_of(data, token_step), total = rows_of(data.total, data, token_step)[0];
  const vectors = rows_of(data.outputs, data, token_step).slice(0, weights.length);
  const most = Math.max(...[total, ...vectors].flatMap(row => row.slice(1).map(Math.abs)));
  const cells = number => [...vectors.map(row => signed(row[number], most)), signed(total[number], most)];
  const heads = ["", ...token_step.accesses.map(({expert}) => `expert ${expert}`), "weighted sum"];
  const rows = [
    [make("b", {}, "weight"), ...weights.map(weight => make("b", {}, `× ${short(weight)}`)), ""],
    [make("b", {}, "norm"), ...vectors.map(row => short(row[0])), short(total[0])],
    ...total.slice(1).map((_, k) => [make("span", {class: "dim"}, `${k + 1}`), ...cells(k + 1)]),
  ];
  return [say(`Each expert's output is a vector of ${data.hidden} numbers (the first ${total.length - 1} below). Their weighted sum is the output of the layer's experts.`),
    table(heads, rows, "Outputs of the experts")];
}
