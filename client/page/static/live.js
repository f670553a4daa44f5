// A camera or a stream, watched as it happens.

// Return an element for the page, or null where there is nothing to offer.
export function watching(features) {
  return null;
}
