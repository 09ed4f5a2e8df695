"use strict";
(() => {
  // A served page asks whether there is more than it shows; where there is, it loads itself anew, and looks as it did.
  const EVERY = 2000; // milliseconds between two questions
  const KEY = "weft view";
  const told = document.getElementById("live");
  const folds = () => [...document.querySelectorAll("main details")].filter((one) => !one.closest(".plot"));
  const heading = (fold) => fold.querySelector("summary").textContent;
  const plots = () => [...document.querySelectorAll("[data-plot]")];
  const tables = () => [...document.querySelectorAll(".scroll")];

  const busy = () => !getSelection().isCollapsed || document.querySelector(".plot details[open]") !== null;
  const ask = async () => {
    let now = null;
    try {
      const answer = await fetch("/state");
      if (answer.ok) now = await answer.json();
    } catch {
      // Nobody answers.
    }
    const trouble = now ? now.trouble : "weft watch no longer answers, so this page stays as it is";
    told.querySelector("span").textContent = trouble ? `: ${trouble}` : "";
    if (now && now.page !== told.dataset.page && !busy()) location.reload();
    else setTimeout(ask, EVERY);
  };
  if (told.dataset.finished === undefined) setTimeout(ask, EVERY);

  window.addEventListener("pagehide", () => {
    const view = {
      y: window.scrollY,
      open: Object.fromEntries(folds().map((one) => [heading(one), one.open])),
      heights: Object.fromEntries(plots().map((one) => [one.dataset.plot, one.offsetHeight])),
      shifts: tables().map((one) => one.scrollLeft),
    };
    sessionStorage.setItem(KEY, JSON.stringify(view));
  });
  // Plots are drawn after the page is there: with their former heights, the place that was looked at is where it was.
  history.scrollRestoration = "manual";
  const view = JSON.parse(sessionStorage.getItem(KEY));
  if (view && performance.getEntriesByType("navigation")[0].type !== "navigate") {
    for (const one of folds()) one.open = view.open[heading(one)] ?? one.open;
    for (const one of plots()) one.style.minHeight = `${view.heights[one.dataset.plot] ?? 0}px`;
    tables().forEach((one, i) => (one.scrollLeft = view.shifts[i] ?? 0));
    window.scrollTo(0, view.y);
  }
})();
