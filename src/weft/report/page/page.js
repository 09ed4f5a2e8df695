"use strict";
(() => {
  // What went wrong is kept where a test, or a person who reports it, finds it.
  const errors = [];
  const noted = (what) => {
    errors.push(String(what));
    document.body.dataset.errors = JSON.stringify(errors);
  };
  window.addEventListener("error", (e) => noted(e.message));
  window.addEventListener("unhandledrejection", (e) => noted(e.reason));
  document.addEventListener("securitypolicyviolation", (e) => noted(`refused: ${e.violatedDirective} ${e.blockedURI}`));

  const held = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");

  // Tables as texts. The clipboard of browsers is closed to some pages that lie in a file: then a selected text is copied.
  const texts = held("texts");
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      area.style.position = "fixed";
      area.style.opacity = "0";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target instanceof Element ? event.target.closest("button[data-copy]") : null;
    if (!button) return;
    const done = await copied(texts[Number(button.dataset.copy)][button.dataset.kind]);
    button.focus();
    button.parentElement.querySelector(".told").textContent = done ? "Copied." : "This browser does not let a page copy.";
  });

  // A printed page has everything in it.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("main details:not([open])")].filter((one) => !one.closest(".plot"));
    for (const one of closed) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
  });

  // Plots: what is seen first, the others when nothing else is to be done.
  const plots = held("plots");
  if (!plots) return;
  const data = {};
  for (const [name, { columns, rows }] of Object.entries(plots.data)) {
    data[name] = rows.map((row) => {
      const one = Object.fromEntries(columns.map((column, i) => [column, row[i]]));
      return one.run === undefined ? one : Object.assign(one, plots.runs[one.run]);
    });
  }
  const names = (spec, found = new Set()) => {
    if (spec && typeof spec === "object") {
      if (spec.data && typeof spec.data.name === "string") found.add(spec.data.name);
      for (const inner of Object.values(spec)) names(inner, found);
    }
    return found;
  };
  const options = {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: "plot",
  };
  const draw = async (place) => {
    const id = place.dataset.plot;
    const spec = plots.specs[id];
    spec.datasets = Object.fromEntries([...names(spec)].map((name) => [name, data[name]]));
    try {
      await window.vegaEmbed(place, spec, { ...options, downloadFileName: id });
      place.dataset.drawn = "";
    } catch (error) {
      place.classList.add("failed");
      noted(error);
    }
  };
  const waiting = [...document.querySelectorAll("[data-plot]")];
  const next = async () => {
    const seen = waiting.findIndex((place) => {
      const { top, bottom } = place.getBoundingClientRect();
      return bottom > 0 && top < window.innerHeight;
    });
    const [place] = waiting.splice(Math.max(seen, 0), 1);
    if (!place) {
      document.body.dataset.drawn = "all";
      return;
    }
    await draw(place);
    setTimeout(next, 0);
  };
  next();
})();
