// The selected part as CSV or PNG, and the overlay video.

// Return an element for the page, or null where there is nothing to offer.
export function exporting(state) {
  return null;
}
