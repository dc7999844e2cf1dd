// Keeps the tables up to date by taking them from the page as the server makes it: one way to draw, not two.
"use strict";

const EVERY = 5000; // milliseconds

async function refresh() {
  const said = document.getElementById("freshness");
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(EVERY) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const section of document.querySelectorAll("main > section")) {
      const old = section.querySelector("[data-part]");
      const now = fresh.querySelector(`#${section.id} [data-part]`);
      // Untouched where nothing changed: whoever selects or scrolls a table is not disturbed.
      if (now && old.innerHTML !== now.innerHTML) old.innerHTML = now.innerHTML;
    }
    said.textContent = "";
  } catch (error) {
    said.textContent = "The explorer does not answer; what is shown may be old.";
  }
}

setInterval(() => { if (!document.hidden) refresh(); }, EVERY);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
