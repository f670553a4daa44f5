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
    const at = take(Int32Array, rows);
    const columns = Object.fromEntries(header.columns.map((name) => [name, take(Float32Array, rows)]));
    const rowAt = new Int32Array(header.frames).fill(-1); // of each frame
    at.forEach((ordinal, row) => (rowAt[ordinal] = row));
    return { track, at, rowAt, columns };
  });
  return { times, frames, people };
}

// The frame that is shown at a time: the nearest, since clocks round.
export function nearest(times, time) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1; else high = middle;
  }
  return low > 0 && time - times[low - 1] < times[low] - time ? low - 1 : low;
}
