"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("ui");
  const show = (ui) => { root.dataset.ui = ui; root.lang = ui; };
  let wanted = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
  // A page opened from a file may have no storage.
  try { wanted = localStorage.getItem("wudao-ui") || wanted; } catch { }
  show(wanted === "zh" ? "zh" : "en");
  button.hidden = false;
  button.addEventListener("click", () => {
    show(root.dataset.ui === "zh" ? "en" : "zh");
    try { localStorage.setItem("wudao-ui", root.dataset.ui); } catch { }
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  // The index of the value nearest to x in an ascending list.
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - list[low - 1] < list[low] - x ? low - 1 : low;
  };
  const written = (value, percent) => {
    if (percent) return (100 * value).toFixed(1) + " %";
    const size = Math.abs(value);
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return size > 0 && size < 1e-3 ? value.toExponential(2) : value === 0 ? "0" : value.toPrecision(4);
  };

  for (const figure of document.querySelectorAll("[data-chart]")) {
    const { series, percent } = data[figure.dataset.chart];
    const plot = figure.querySelector(".plot");
    const tip = element("div", "", plot);
    tip.className = "tip";
    tip.hidden = true;
    for (const svg of plot.querySelectorAll("svg")) {
      const [left, right, low, high] = svg.dataset.x.split(" ").map(Number);
      const cross = svg.querySelector(".cross");
      const leave = () => { tip.hidden = true; cross.style.visibility = "hidden"; };
      const move = (event) => {
        const box = svg.getBoundingClientRect();
        const scale = box.width / svg.viewBox.baseVal.width;
        const at = Math.min(right, Math.max(left, (event.clientX - box.left) / scale));
        const pointed = low + (at - left) / (right - left) * (high - low);
        const drawn = series.filter((s) => s.x.length > 0);
        if (drawn.length === 0) return;
        const step = drawn[0].x[nearest(drawn[0].x, pointed)];
        const x = left + (step - low) / (high - low) * (right - left);
        cross.setAttribute("transform", `translate(${x} 0)`);
        cross.style.visibility = "visible";
        tip.replaceChildren();
        const zh = root.dataset.ui === "zh";
        const steps = Math.round(step).toLocaleString("en");
        element("div", zh ? `第 ${steps} 步` : `step ${steps}`, tip);
        for (const s of drawn) {
          const i = nearest(s.x, step);
          const row = element("div", "", tip);
          element("i", "", row).style.setProperty("--c", s.c);
          element("span", zh ? s.zh : s.en, row);
          element("b", written(s.y[i], percent), row);
        }
        tip.hidden = false;
        const room = box.width - tip.offsetWidth;
        const beside = x * scale + 14;
        tip.style.left = Math.max(0, Math.min(beside > room ? x * scale - 14 - tip.offsetWidth : beside, room)) + "px";
        tip.style.top = "6px";
      };
      svg.addEventListener("pointermove", move);
      svg.addEventListener("pointerdown", move);
      svg.addEventListener("pointerleave", leave);
    }
  }
})();
