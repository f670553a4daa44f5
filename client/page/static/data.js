// A result in the browser: typed arrays that look into the bytes as they came.

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 0;
  const skip = (bytes) => { const from = at; at += Math.ceil(bytes / 8) * 8; return from; };
  const take = (Kind, count) => new Kind(buffer, skip(count * Kind.BYTES_PER_ELEMENT), count);
  skip(4 + length);
  const times = take(Float64Array, header.frames);
  const frames = take(Int32Array, header.frames);
  const people = header.people.map(({ track, rows }) => {
    const at = take(Int32Array, rows); // ordinals of the frames
    const columns = Object.fromEntries(header.columns.map((name) => [name, take(Float32Array, rows)]));
    const rowAt = new Int32Array(header.frames).fill(-1); // of each frame
    at.forEach((ordinal, row) => (rowAt[ordinal] = row));
    return { track, at, rowAt, columns };
  });
  return { times, frames, people };
}

// The last place whose time is not after a time; 0 where all are.
export function before(times, time) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time) low = middle; else high = middle - 1;
  }
  return low;
}

// The frame that is shown at a time that a clock has rounded: the nearest.
export function nearest(times, time) {
  const k = before(times, time);
  return k + 1 < times.length && times[k + 1] - time < time - times[k] ? k + 1 : k;
}

// When frames end: as the next begins, the last as long as the one before it.
export function endOf(times, k) {
  return k + 1 < times.length ? times[k + 1] : times[k] + (k > 0 ? times[k] - times[k - 1] : 1 / 25);
}

// What each of `count` steps from `from` to `to` seconds shows of one person: means, and for lines their limits.
// A step without a frame of its own shows the frame that is on the screen then; `seen` is 0 where there is no face.
export function binned(times, person, names, from, to, count) {
  const seen = new Uint8Array(count), means = names.map(() => new Float32Array(count));
  const lows = names.map(() => new Float32Array(count)), highs = names.map(() => new Float32Array(count));
  const columns = names.map((name) => person.columns[name]), end = endOf(times, times.length - 1);
  let k = before(times, from);
  for (let x = 0; x < count; x++) {
    const begins = from + ((to - from) * x) / count, ends = from + ((to - from) * (x + 1)) / count;
    while (k + 1 < times.length && times[k + 1] <= begins) k++;
    if (ends < times[0] || begins >= end) continue;
    let rows = 0;
    for (let j = k; j < times.length && (j === k || times[j] < ends); j++) {
      const row = person.rowAt[j];
      if (row < 0) continue;
      for (let c = 0; c < columns.length; c++) {
        const value = columns[c][row];
        means[c][x] += value;
        if (rows === 0 || value < lows[c][x]) lows[c][x] = value;
        if (rows === 0 || value > highs[c][x]) highs[c][x] = value;
      }
      rows++;
    }
    seen[x] = rows > 0 ? 1 : 0;
    if (rows > 1) for (let c = 0; c < columns.length; c++) means[c][x] /= rows;
  }
  return { seen, means, lows, highs };
}

// Call back for each run of steps of which something holds: f(first, end).
export function runs(holds, f) {
  for (let x = 0; x < holds.length; x++) {
    if (!holds[x]) continue;
    const first = x;
    while (x < holds.length && holds[x]) x++;
    f(first, x);
  }
}
