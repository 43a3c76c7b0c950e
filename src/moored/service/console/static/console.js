// SPDX-License-Identifier: Apache-2.0
// Follows what is still going on: asks for the same page again and puts in the parts of it that have changed.
// Without this script a page says the same, once, and is reloaded by hand.
"use strict";

const PAUSE = 2000;

function going(page) {
  return [...page.querySelectorAll("[data-live=yes]")];
}

// What somebody is in the middle of using stays as it is.
function inUse(part) {
  return part.contains(document.activeElement) || part.querySelector(".sure[open]") !== null;
}

function put(old, fresh) {
  if (old.outerHTML === fresh.outerHTML || inUse(old)) return;
  const places = [...old.querySelectorAll("[role=region]")].map((region) => region.scrollTop);
  const said = old.querySelector("[role=status]");
  old.replaceChildren(...fresh.childNodes);
  old.dataset.live = fresh.dataset.live;
  old.querySelectorAll("[role=region]").forEach((region, i) => (region.scrollTop = places[i] || 0));
  const now = old.querySelector("[role=status]");
  if (said && now && said.textContent === now.textContent) now.replaceWith(said); // said already: not said again
  else if (said && now) said.replaceChildren(...now.childNodes), now.replaceWith(said);
}

async function follow() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload();
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const over = going(document).length > 0 && going(fresh).length === 0;
      for (const part of going(document)) {
        const other = fresh.getElementById(part.id);
        if (other) put(part, other);
      }
      if (over && document.activeElement === document.body) return location.reload(); // what is shown only at the end
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // the server is away: the next time it may be back
  }
  if (going(document).length) setTimeout(follow, PAUSE);
}

if (going(document).length) setTimeout(follow, PAUSE);
