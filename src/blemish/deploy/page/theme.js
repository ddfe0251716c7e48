// Runs before the page is drawn, so that a chosen theme never flashes the other one.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const read = () => {
    try {
      return localStorage.getItem("blemish-theme") || "auto";
    } catch {
      return "auto"; // storage may be switched off
    }
  };
  let choice = read();
  const apply = () => {
    root.dataset.theme = choice === "auto" ? (system.matches ? "dark" : "light") : choice;
    root.dataset.themeChoice = choice;
  };
  system.addEventListener("change", apply);
  addEventListener("theme", (event) => {
    choice = event.detail;
    try {
      localStorage.setItem("blemish-theme", choice);
    } catch {
      // the choice then lasts as long as the page
    }
    apply();
  });
  apply();
})();
