// Keeps a page as it is on the server: events say when, the page itself says what. Without this script it is a page.
"use strict";
(() => {
  const address = document.body.dataset.stream;
  const sign = document.getElementById("live");
  if (!address || !sign) return;

  const REST_MS = 900;
  const POLL_MS = 5000;
  let source = null;
  let poll = 0;
  let timer = 0;
  let isLoading = false;

  function say(text) {
    if (sign.textContent !== text) sign.textContent = text;
  }

  function schedule() {
    if (!timer) timer = setTimeout(refresh, REST_MS);
  }

  async function refresh() {
    timer = 0;
    if (isLoading) return schedule();
    isLoading = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      if (answer.ok) show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      say("Not connected");
    } finally {
      isLoading = false;
    }
  }

  function show(fresh) {
    for (const region of document.querySelectorAll("[data-live]")) {
      const next = fresh.querySelector(`[data-live="${region.dataset.live}"]`);
      if (!next) continue;
      const focused = region.contains(document.activeElement) ? document.activeElement : null;
      const place = focused && (focused.id ? `#${CSS.escape(focused.id)}` : focused.getAttribute("href"));
      for (const open of region.querySelectorAll("details[open][id]")) next.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
      const scrolled = new Map([...region.querySelectorAll(".scroll")].map((one, index) => [index, one.scrollLeft]));
      region.replaceChildren(...next.childNodes);
      region.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = scrolled.get(index) ?? 0; });
      if (place) {
        const again = place.startsWith("#") ? region.querySelector(place) : region.querySelector(`a[href="${CSS.escape(place)}"]`);
        again?.focus({ preventScroll: true });
      }
      region.dispatchEvent(new CustomEvent("fallow:shown", { bubbles: true }));
    }
  }

  function watch() {
    if (source || poll) return;
    source = new EventSource(address);
    source.onopen = () => say("Live");
    source.onmessage = schedule;
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return say("Connecting");
      source = null;
      say("Every 5 s"); // The server streams to no more pages, or something between us and it does not stream at all.
      poll = setInterval(refresh, POLL_MS);
    };
  }

  function rest() {
    source?.close();
    clearInterval(poll);
    source = null;
    poll = 0;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return rest();
    watch();
    schedule();
  });
  window.addEventListener("pagehide", rest);
  watch();
})();
