// How one person's numbers are drawn over time: lines, stacked areas, a heat map. Each gets what `binned` returns.

import { runs } from "./data.js";
import { pen, themed } from "./dom.js";

// The part of the steps' path that goes along `values`, from left to right, a step each.
function along(context, values, first, end, x, y, move) {
  for (let k = first; k < end; k++) {
    if (move && k === first) context.moveTo(x(k), y(values[k])); else context.lineTo(x(k), y(values[k]));
    context.lineTo(x(k + 1), y(values[k]));
  }
}

function area(context, lower, upper, seen, x, y) {
  context.beginPath();
  runs(seen, (first, end) => {
    along(context, upper, first, end, x, y, true);
    for (let k = end - 1; k >= first; k--) {
      context.lineTo(x(k + 1), y(lower[k]));
      context.lineTo(x(k), y(lower[k]));
    }
    context.closePath();
  });
  context.fill();
}

let hatching = null;

// Where nobody was seen.
export function hatch(context, seen, width, height) {
  const ink = themed("--hatch");
  if (hatching?.ink !== ink) {
    const tile = new OffscreenCanvas(8, 8), line = tile.getContext("2d");
    line.strokeStyle = ink;
    line.lineWidth = 1;
    for (const shift of [-8, 0, 8]) { line.moveTo(shift, 8); line.lineTo(shift + 8, 0); }
    line.stroke();
    hatching = { ink, pattern: context.createPattern(tile, "repeat") };
  }
  context.fillStyle = hatching.pattern;
  const step = width / seen.length;
  runs(seen.map((one) => 1 - one), (first, end) => context.fillRect(first * step, 0, (end - first) * step, height));
}

export function lines(canvas, { seen, means, lows, highs }, colours) {
  const { context, width, height } = pen(canvas);
  const x = (k) => (k * width) / seen.length, y = (value) => (1 - value) * 0.5 * (height - 4) + 2;
  hatch(context, seen, width, height);
  context.strokeStyle = themed("--rule");
  context.lineWidth = 1;
  context.beginPath();
  for (const value of [-1, 0, 1]) { context.moveTo(0, y(value)); context.lineTo(width, y(value)); }
  context.stroke();
  means.forEach((values, c) => {
    context.fillStyle = context.strokeStyle = colours[c % colours.length];
    context.globalAlpha = 0.22; // between the least and the most of what a step holds
    area(context, lows[c], highs[c], seen, x, y);
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
    context.beginPath();
    runs(seen, (first, end) => along(context, values, first, end, x, y, true));
    context.stroke();
  });
}

export const STRIP = 10; // pixels of the most probable class above the areas

export function stacked(canvas, { seen, means }, colours) {
  const { context, width, height } = pen(canvas), top = STRIP + 4;
  const x = (k) => (k * width) / seen.length, y = (value) => height - value * (height - top);
  hatch(context, seen, width, height);
  let lower = new Float32Array(seen.length);
  const winner = new Uint8Array(seen.length);
  means.forEach((values, c) => {
    const upper = lower.map((value, k) => value + values[k]);
    context.fillStyle = colours[c % colours.length];
    area(context, lower, upper, seen, x, y);
    lower = upper;
    values.forEach((value, k) => { if (value > means[winner[k]][k]) winner[k] = c; });
  });
  means.forEach((values, c) => {
    context.fillStyle = colours[c % colours.length];
    runs(seen.map((one, k) => one && winner[k] === c), (first, end) => context.fillRect(x(first), 0, x(end) - x(first), STRIP));
  });
}

// 256 colours from those given, as [r, g, b].
export function ramp(colours) {
  const stops = colours.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
    return stops[low].map((tone, c) => tone + (stops[low + 1][c] - tone) * (place - low));
  });
}

export function heat(canvas, { seen, means }, shades) {
  const { context, width, height } = pen(canvas), count = seen.length, rows = means.length;
  hatch(context, seen, width, height);
  const picture = new ImageData(count, rows);
  means.forEach((values, row) => {
    for (let k = 0, at = 4 * row * count; k < count; k++, at += 4) {
      if (!seen[k]) continue;
      const shade = shades[Math.max(0, Math.min(255, Math.round(255 * values[k]) || 0))];
      picture.data[at] = shade[0];
      picture.data[at + 1] = shade[1];
      picture.data[at + 2] = shade[2];
      picture.data[at + 3] = 255;
    }
  });
  const small = new OffscreenCanvas(count, rows);
  small.getContext("2d").putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

// Times under the axis, at round steps that leave room for their words.
export function axis(canvas, { from, to }, write) {
  const { context, width, height } = pen(canvas);
  const least = (to - from) / Math.max(1, width / 90);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600].find((one) => one >= least) ?? 7200;
  context.fillStyle = themed("--quiet");
  context.strokeStyle = themed("--rule");
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  context.beginPath();
  for (let at = Math.ceil(from / step - 1e-9) * step; at <= to + 1e-9; at += step) {
    const x = ((at - from) / (to - from)) * width, text = write(at, step < 1 ? (step < 0.1 ? 2 : 1) : 0);
    context.moveTo(x, height - 5);
    context.lineTo(x, height);
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.max(half, Math.min(width - half, x)), height - 8);
  }
  context.stroke();
}
