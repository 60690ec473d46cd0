"use strict";
(() => {
  const root = document.documentElement, all = (s, of = document) => [...of.querySelectorAll(s)];
  root.classList.add("js");
  const make = (name, text, set = {}) => {
    const e = document.createElement(name);
    e.textContent = text;
    for (const k in set) e.setAttribute(k, set[k]);
    return e;
  };

  // Light or dark: as the system has it until somebody chooses.
  const themes = ["auto", "light", "dark"];
  let theme = "auto";
  const button = make("button", "", {type: "button", id: "theme"});
  const show = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
  };
  try { const kept = localStorage.getItem("wallprobe-theme"); if (themes.includes(kept)) theme = kept; } catch { /* not kept */ }
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("wallprobe-theme", theme); } catch { /* not kept */ }
    show();
  });
  show();
  document.getElementById("tools").append(button);

  // Filters by verdict, for the table and the picture of each result.
  for (const result of all("[data-result]")) {
    const bar = result.querySelector("[data-filter]");
    if (!bar) continue;
    const rows = all(".paths > tbody", result), lanes = all(".picture li", result), counts = new Map();
    for (const r of rows) counts.set(r.dataset.v, (counts.get(r.dataset.v) || 0) + 1);
    const said = make("output", ""), buttons = [];
    const choose = verdict => {
      for (const e of [...rows, ...lanes]) e.hidden = verdict !== "" && e.dataset.v !== verdict;
      for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.show === verdict));
      const n = verdict === "" ? rows.length : counts.get(verdict);
      said.textContent = verdict === "" ? "" : `showing ${n} of ${rows.length}`;
    };
    const add = (verdict, text) => {
      const b = make("button", text, {type: "button", "data-show": verdict, "aria-pressed": "false"});
      b.addEventListener("click", () => choose(b.getAttribute("aria-pressed") === "true" ? "" : verdict));
      buttons.push(b);
    };
    add("", `all ${rows.length}`);
    if (counts.size > 1) for (const [v, n] of counts) add(v, `${v} ${n}`);
    const folds = all(".more > td > details", result);
    const unfold = make("button", "open all evidence", {type: "button", "data-unfold": ""});
    unfold.addEventListener("click", () => {
      const open = folds.some(d => !d.open);
      for (const d of folds) d.open = open;
      unfold.textContent = open ? "close all evidence" : "open all evidence";
    });
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Show paths by verdict");
    bar.append(...buttons, ...(folds.length ? [unfold] : []), said);
    result.unfilter = () => choose("");
    choose("");
  }

  // A click anywhere on a row opens its evidence; the keyboard has the summary.
  document.addEventListener("click", e => {
    const row = e.target.closest(".paths > tbody > tr");
    if (!row || e.target.closest("a, button, details") || String(getSelection())) return;
    const fold = row.parentElement.querySelector("details");
    if (fold) fold.open = !fold.open;
  });

  // A link leads to its row, whatever hides it, and opens the evidence.
  const reveal = () => {
    const e = document.getElementById(location.hash.slice(1));
    if (!e) return;
    if (e.hidden) e.closest("[data-result]").unfilter();
    for (let d = e; d; d = d.parentElement) if (d.localName === "details") d.open = true;
    if (e.localName === "tbody") {
      const fold = e.querySelector("details");
      if (fold) { fold.open = true; fold.querySelector("summary").focus({preventScroll: true}); }
    }
    if (e.localName === "details") e.querySelector("summary").focus({preventScroll: true});
    e.scrollIntoView({block: "start"});
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", e => { // the same link once more changes no hash
    const a = e.target.closest("a[href^='#']");
    if (a && a.hash === location.hash) reveal();
  });
  if (location.hash) reveal();

  // Strips of ports say what is under the pointer, or under the arrow keys.
  for (const figure of all(".ports")) {
    const said = figure.querySelector("[data-readout]");
    for (const strip of all(".strip", figure)) {
      const runs = all("rect:not(.ground)", strip);
      if (!runs.length) continue;
      strip.setAttribute("role", "group");
      runs.forEach((r, i) => {
        const label = r.querySelector("title").textContent;
        r.setAttribute("role", "img");
        r.setAttribute("aria-label", label);
        r.setAttribute("tabindex", i ? "-1" : "0");
        const say = () => { said.textContent = label; };
        r.addEventListener("mouseenter", say);
        r.addEventListener("focus", say);
        r.addEventListener("keydown", e => {
          const to = {ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: runs.length - 1}[e.key];
          if (to === undefined || !runs[to]) return;
          e.preventDefault();
          r.setAttribute("tabindex", "-1");
          runs[to].setAttribute("tabindex", "0");
          runs[to].focus();
        });
      });
    }
  }

  // Paper cannot be opened.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); for (const d of closed) d.open = true; });
  addEventListener("afterprint", () => { for (const d of closed) d.open = false; closed = []; });
})();
