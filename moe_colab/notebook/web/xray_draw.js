// The two pictures of an x-ray: tokens x layers, and the experts of every layer at one token.
//
// Knows canvases and the view of xray.js; keeps no state. Everything is first laid out as a list
// (view.drawn) and then painted from it; the same list tells what is under the mouse.

const LINE = 15, HEAD = 20, MARGIN = 34;  // a line of choices, the words above, the layers' numbers
const WIDEST_DIGITS = 32;  // up to so many experts per layer, each gets a cell with its number
const NAME = 38, TICKS = 14;  // width of a glyph and a number; height of a line of ticks

// ------------------------------------------------------------------ canvas
// An empty canvas of this size, and the current colours of the page.
function paper(root, canvas, width, height) {
  const sharp = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * sharp));
  canvas.height = Math.max(1, Math.round(height * sharp));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d"), style = getComputedStyle(root);
  pen.scale(sharp, sharp);
  pen.textBaseline = "middle";
  pen.family = style.fontFamily;
  pen.colour = name => style.getPropertyValue(`--${name}`).trim();
  pen.fillStyle = pen.colour("bg");
  pen.fillRect(0, 0, width, height);
  return pen;
}

function write(pen, text, x, y, {size = 11, colour = "fg", align = "center", bold = false} = {}) {
  pen.font = `${bold ? "bold " : ""}${size}px ${pen.family}`;
  pen.fillStyle = pen.colour(colour);
  pen.textAlign = align;
  pen.fillText(text, x, y);
}

// The glyph of a state, centred at a point.
function glyph(pen, state, x, y, r = 4) {
  const corners = {
    [SPECULATIVE]: [[0, -r], [r, r * .8], [-r, r * .8]],
    [LATE]: [[0, -r], [r, 0], [0, r], [-r, 0]],
  }[state];
  pen.fillStyle = pen.strokeStyle = pen.colour(colourOf(state));
  pen.beginPath();
  if (corners) {
    corners.forEach(([dx, dy]) => pen.lineTo(x + dx, y + dy));
    pen.fill();
  } else if (state === HIT) {
    pen.arc(x, y, r * .85, 0, 7);
    pen.fill();
  } else if (state === MISS || state === PASSING) {
    const d = r * .8;
    pen.lineWidth = 2.2;
    for (const way of [1, -1]) { pen.moveTo(x - d, y - d * way); pen.lineTo(x + d, y + d * way); }
    pen.stroke();
  } else {
    write(pen, "?", x, y, {size: 10, colour: "dim"});
  }
}

// A ring: another token of the same step caused the load.
function ring(pen, x, y) {
  pen.strokeStyle = pen.colour("dim");
  pen.lineWidth = 1.2;
  pen.beginPath();
  pen.arc(x, y, 2.6, 0, 7);
  pen.stroke();
}

function colourOf(state) {
  return {[HIT]: "hit", [SPECULATIVE]: "speculative", [LATE]: "speculative", [MISS]: "miss",
    [PASSING]: "miss"}[state] ?? "dim";
}

// ------------------------------------------------------------------ tokens x layers
// Sizes: `chips` choices of a layer have a number each, the others a bar.
function gridSize(view) {
  const {layers, choices, widest} = view;
  const chips = layers * Math.min(choices, 2) <= 24 ? Math.min(choices, 2) : 1;
  const digits = 8 + 7 * String(widest - 1).length;
  const bars = 4 * (choices - chips);
  const cell = Math.max(30, digits + 22 + (bars && bars + 5));
  return {chips, digits, cell, line: chips * LINE + 4,
    width: MARGIN + cell * view.tokens, height: HEAD + (chips * LINE + 4) * layers};
}

// The visible cells; x and y are positions on the canvas.
function gridCells(view, left, top, width, height) {
  const size = gridSize(view), cells = [];
  const from = Math.floor(left / size.cell), to = Math.ceil((left + width - MARGIN) / size.cell);
  const above = Math.floor(top / size.line), below = Math.ceil((top + height - HEAD) / size.line);
  for (let token = from; token < Math.min(to, view.tokens); token++) {
    for (let layer = above; layer < Math.min(below, view.layers); layer++) {
      cells.push({token, layer, x: MARGIN + token * size.cell - left, w: size.cell,
        y: HEAD + layer * size.line - top, h: size.line, chosen: view.chosen(token, layer)});
    }
  }
  return cells;
}

function drawGrid(view, canvas, box) {
  const size = gridSize(view), width = box.clientWidth;
  const height = Math.min(size.height, box.clientHeight);
  const pen = paper(view.root, canvas, width, height);
  const cells = gridCells(view, box.scrollLeft, box.scrollTop, width, height);
  view.drawn.grid = cells;
  const current = cells.filter(cell => cell.token === view.current);
  for (const cell of cells) drawCell(pen, cell, size);
  drawMargins(pen, view, cells, width, height);
  pen.strokeStyle = pen.colour("focus");
  if (current.length) pen.strokeRect(current[0].x + .5, HEAD - 1.5, size.cell - 4, height);
  pen.lineWidth = 2.5;
  for (const cell of current) {
    if (cell.layer === view.layer) pen.strokeRect(cell.x + .5, cell.y, cell.w - 4, cell.h - 2);
  }
}

function drawCell(pen, {x, y, chosen}, size) {
  chosen.slice(0, size.chips).forEach(({expert, probability, state, first}, rank) => {
    const middle = y + 1 + rank * LINE + LINE / 2;
    pen.globalAlpha = probability === null ? 0 : .04 + .3 * probability;
    pen.fillStyle = pen.colour("fg");
    pen.fillRect(x + 3, middle - LINE / 2 + 1, size.digits, LINE - 2);
    pen.globalAlpha = 1;
    write(pen, expert, x + 3 + size.digits / 2, middle + .5);
    if (first) glyph(pen, state, x + size.digits + 10, middle);
    else ring(pen, x + size.digits + 10, middle);
  });
  chosen.slice(size.chips).forEach((choice, place) => drawBar(pen, choice,
    x + size.digits + 19 + 4 * place, y + size.line - 4, size.line - 6));
}

// A further choice: higher is more expensive; a dot if another token caused the load.
function drawBar(pen, {state, first}, x, bottom, most) {
  const share = {[HIT]: .3, [SPECULATIVE]: .55, [LATE]: .8, [MISS]: 1, [PASSING]: 1}[state] ?? .3;
  pen.fillStyle = pen.colour(first ? colourOf(state) : "dim");
  const height = first ? Math.max(3, most * share) : 2;
  pen.fillRect(x, bottom - height, 3, height);
}

// The words above and the layers' numbers, drawn over the scrolled cells.
function drawMargins(pen, view, cells, width, height) {
  pen.fillStyle = pen.colour("bg");
  pen.fillRect(0, 0, width, HEAD);
  pen.fillRect(0, 0, MARGIN, height);
  const seen = new Set();
  for (const {token, layer, x, y, w, h} of cells) {
    if (!seen.has(`l${layer}`) && y > HEAD - h / 2) drawLayer(pen, view, layer, y + h / 2);
    if (!seen.has(`t${token}`) && x > MARGIN - 4) drawWord(pen, view, token, x, w);
    seen.add(`l${layer}`).add(`t${token}`);
  }
  write(pen, "layer", 2, HEAD / 2, {size: 10, colour: "dim", align: "left"});
}

function drawLayer(pen, view, layer, middle) {
  const bold = layer === view.layer;
  write(pen, layer, MARGIN - 8, middle, {align: "right", bold, colour: bold ? "fg" : "dim"});
}

function drawWord(pen, view, token, x, w) {
  const now = token === view.current;
  write(pen, shortened(pen, view.word(token), w - 6, now), x + 3, HEAD / 2, {align: "left", bold: now, colour: now ? "fg" : "dim"});
}

// The text, with an ellipsis if it is wider than `width` pixels.
function shortened(pen, text, width, bold) {
  pen.font = `${bold ? "bold " : ""}11px ${pen.family}`;
  if (pen.measureText(text).width <= width) return text;
  const signs = [...text];
  while (signs.length && pen.measureText(signs.join("") + "…").width > width) signs.pop();
  return signs.join("") + "…";
}

// ------------------------------------------------------------------ experts of one step
// Up to 32 experts per layer: a line of cells with numbers. More: lines of ticks, whose height shows
// the state, and beside them the experts that were used, by glyph and number.
function expertSize(view, width) {
  if (view.widest <= WIDEST_DIGITS) {
    const cell = Math.max(17, Math.min(40, Math.floor((width - MARGIN) / view.widest)));
    return {cell, line: 24, across: view.widest, lines: 1, high: 20, names: 0};
  }
  const across = Math.min(view.widest, 128), lines = Math.ceil(view.widest / across);
  const names = Math.min(width / 2, 14 + view.choices * NAME);
  const cell = (width - MARGIN - names) / across;
  return {across, lines, names, cell, high: 12, line: Math.max(18, TICKS * lines + 6)};
}

function expertCells(view, width) {
  const size = expertSize(view, width), cells = [];
  view.experts.forEach((count, layer) => {
    const states = view.states(layer);
    for (let expert = 0; expert < count; expert++) {
      cells.push({layer, expert, state: states[expert], w: size.cell, h: size.high,
        x: MARGIN + expert % size.across * size.cell,
        y: 2 + layer * size.line + Math.floor(expert / size.across) * TICKS});
    }
  });
  return cells;
}

function drawExperts(view, canvas, width) {
  const size = expertSize(view, width);
  const pen = paper(view.root, canvas, width, 4 + size.line * view.layers);
  const cells = view.drawn.experts = expertCells(view, width);
  for (const cell of cells) (size.names ? drawTick : drawSlot)(pen, cell);
  for (let layer = 0; layer < view.layers; layer++) {
    const y = 2 + layer * size.line;
    drawLayer(pen, view, layer, y + size.high / 2);
    if (size.names) drawNames(pen, view, cells, layer, y, width, size);
  }
}

// A cell: framed where the expert has a slot, dashed where it was used and has none.
function drawSlot(pen, {expert, state, x, y, w, h}) {
  const used = state > IDLE, away = state === AWAY || state === PASSING;
  if (state === IDLE) {  // no colour is visible on it
    pen.fillStyle = pen.colour("field");
    pen.fillRect(x + 1, y, w - 3, h);
  }
  pen.setLineDash(away ? [2, 2] : []);
  pen.strokeStyle = pen.colour(used ? colourOf(state) : "dim");
  pen.lineWidth = used ? 2 : 1;
  if (state !== AWAY) pen.strokeRect(x + 1.5, y + .5, w - 4, h - 1);
  pen.setLineDash([]);
  const roomy = used && w >= 26;
  write(pen, expert, x + w / 2 - (roomy ? 6 : .5), y + h / 2 + .5,
    {size: w < 22 ? 9 : 11, colour: state === AWAY ? "dim" : "fg", bold: used && !roomy});
  if (roomy) glyph(pen, state, x + w / 2 + 7, y + h / 2);
}

// A tick that was used and not kept does not reach down to the line.
function drawTick(pen, {state, x, y, w, h}) {
  const used = state > IDLE, height = used ? h : state === IDLE ? 6 : 1.5;
  const wide = used ? Math.max(3, w - 1) : Math.max(1, w - 1);
  pen.fillStyle = pen.colour(used ? colourOf(state) : "dim");
  pen.fillRect(x + (w - wide) / 2, y + h - height, wide, state === PASSING ? height / 2 : height);
}

// The experts that were used, the most expensive first, as many as fit.
function drawNames(pen, view, cells, layer, y, width, size) {
  const used = cells.filter(cell => cell.layer === layer && cell.state > IDLE)
    .sort((a, b) => b.state - a.state || a.expert - b.expert);
  const across = Math.max(1, Math.floor((size.names - 14) / NAME)), room = across * size.lines;
  const left = place => width - size.names + 14 + place % across * NAME;
  const middle = place => y + 6 + Math.floor(place / across) * TICKS;
  const named = used.length > room ? room - 1 : used.length;
  used.slice(0, named).forEach(({expert, state}, place) => {
    glyph(pen, state, left(place), middle(place), 3.6);
    write(pen, expert, left(place) + 7, middle(place) + .5, {align: "left"});
  });
  if (used.length > named) {
    const more = `+ ${used.length - named}`;
    write(pen, more, left(named) - 4, middle(named) + .5, {align: "left", colour: "dim"});
  }
}

function under(cells, event) {
  const {offsetX: x, offsetY: y} = event;
  return cells.find(cell => x >= cell.x && x < cell.x + cell.w && y >= cell.y && y < cell.y + cell.h);
}
