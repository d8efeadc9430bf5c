// Reads one round out of all charts at once, under the pointer or with the slider; the figures are the table's.
"use strict";
(() => {
  const chosen = new Map(); // By slider, so that a page that shows itself anew keeps the round that is being read.

  function rowsOf(charts) {
    return [...charts.querySelectorAll("tr[data-round]")];
  }

  function prepare(root) {
    for (const charts of root.querySelectorAll("[data-charts]")) {
      const slider = charts.querySelector("input[type=range]");
      const round = chosen.get(slider.id);
      charts.querySelector(".reader").hidden = false;
      const index = rowsOf(charts).findIndex((row) => row.dataset.round === round);
      if (index >= 0) slider.value = String(index);
      read(charts, Number(slider.value), index >= 0);
    }
  }

  function read(charts, index, isChosen) {
    const row = rowsOf(charts)[index];
    if (!row) return;
    const slider = charts.querySelector("input[type=range]");
    const round = Number(row.dataset.round);
    slider.value = String(index);
    slider.setAttribute("aria-valuetext", `Round ${round}`);
    charts.querySelector("output").textContent = `Round ${round}`;
    if (isChosen) chosen.set(slider.id, row.dataset.round);
    for (const figure of charts.querySelectorAll("figure")) {
      const plot = figure.querySelector("svg.plot");
      const { left, right, first, last } = plot.dataset;
      const share = last === first ? 0.5 : (round - first) / (last - first);
      const cross = plot.querySelector(".cross");
      const x = String(Number(left) + share * (right - left));
      cross.setAttribute("x1", x);
      cross.setAttribute("x2", x);
      cross.classList.add("shown");
      const cells = row.querySelectorAll(`td[data-chart="${figure.dataset.chart}"]`);
      figure.querySelector(".reading").textContent = `Round ${round}: ` + [...cells].map((cell) => `${cell.dataset.name} ${cell.textContent}`).join(", ");
    }
  }

  document.addEventListener("input", (event) => {
    const charts = event.target.closest("[data-charts]");
    if (charts && event.target.type === "range") read(charts, Number(event.target.value), true);
  });

  document.addEventListener("pointermove", (event) => {
    const plot = event.target.closest?.("svg.plot");
    if (!plot) return;
    const charts = plot.closest("[data-charts]");
    const { left, right, first, last } = plot.dataset;
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const round = Number(first) + ((x - left) / (right - left)) * (last - first);
    const distances = rowsOf(charts).map((row) => Math.abs(row.dataset.round - round));
    read(charts, distances.indexOf(Math.min(...distances)), true);
  });

  document.addEventListener("fallow:shown", (event) => prepare(event.target));
  prepare(document);
})();
