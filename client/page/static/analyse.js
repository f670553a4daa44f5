// The queue: videos that are dropped here or chosen on this machine are analysed.

// Return an element for the page, or null where there is nothing to offer.
export function analysing(features) {
  return null;
}
