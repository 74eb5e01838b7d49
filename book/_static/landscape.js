// Interactive figures. Each waits as data inside its page; plotly.js (served from this site) is
// fetched when the first one comes into view, and the still picture then gives way to it.
(() => {
  const root = document.documentElement.dataset.content_root || "./";
  let library = null;

  const loadPlotly = () =>
    (library ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL(`${root}plotly/plotly.min.js`, document.baseURI);
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error("plotly.min.js could not be read"));
      document.head.append(script);
    }));

  // On a narrow page panels that stand side by side stand one above the other, a table below them.
  const stack = ({ data, layout }) => {
    const xs = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key));
    const left = (key) => (layout[key].domain || [0, 1])[0];
    const columns = [...new Set(xs.map(left))].sort((a, b) => a - b);
    const tables = data.filter((trace) => trace.type === "table");
    const margin = layout.margin || { t: 40, b: 10 };
    const slider = (layout.sliders || []).length ? 130 : 0;
    if (columns.length < 2 && !tables.length) {
      layout.height = Math.min(layout.height || 450, 380 + slider);
      return;
    }
    const [panel, gap] = [230, 64];
    const rows = Math.max(0, ...tables.map((trace) => trace.cells.values[0].length));
    const below = rows ? 30 * rows + 20 : 0;
    const inner = columns.length * (panel + gap) + below;
    columns.forEach((column, k) => {
      const mine = xs.filter((key) => left(key) === column);
      const names = mine.map((key) => key.replace("axis", ""));
      const used = (key) => data.some((t) => names.includes(t.xaxis || "x") && (t.yaxis || "y") === key.replace("axis", ""));
      const ys = Object.keys(layout).filter((key) => /^yaxis\d*$/.test(key) && used(key));
      const domains = ys.map((key) => layout[key].domain || [0, 1]);
      const low = Math.min(...domains.map((d) => d[0]));
      const high = Math.max(...domains.map((d) => d[1]));
      const foot = inner - (k + 1) * (panel + gap) + gap;
      ys.forEach((key, i) => {
        layout[key].domain = domains[i].map((y) => (foot + (panel * (y - low)) / (high - low)) / inner);
      });
      mine.forEach((key) => (layout[key].domain = [0, 1]));
    });
    tables.forEach((trace) => (trace.domain = { x: [0, 1], y: [0, below / inner] }));
    layout.height = inner + margin.t + margin.b + slider;
  };

  const isNarrow = (place) => place.clientWidth < 500;

  const draw = async (place) => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const plotly = await loadPlotly();
    const target = document.createElement("div");
    target.className = "landscape-figure";
    place.append(target);
    const narrow = isNarrow(place);
    if (narrow) stack(figure);
    const layout = { ...figure.layout, autosize: true };
    delete layout.width;
    const data = figure.data.map((trace) => (narrow ? { ...trace, showscale: false } : trace));
    await plotly.newPlot(target, data, layout, {
      responsive: true,
      displaylogo: false,
      modeBarButtonsToRemove: ["sendDataToCloud"],
    });
    mirrorSliders(plotly, target, figure.layout.sliders || []);
    place.parentElement.classList.add("landscape-drawn");
    place.dataset.ready = "true";
    redrawWhenTurned(plotly, place, target, narrow);
  };

  // A phone that is turned, a window made narrow: what stood side by side is stacked, or back.
  const redrawWhenTurned = (plotly, place, target, narrow) => {
    const watch = new ResizeObserver(() => {
      if (!place.clientWidth || isNarrow(place) === narrow) return;
      watch.disconnect();
      delete place.dataset.ready;
      const chosen = [...place.querySelectorAll(".landscape-slider")].map((input) => input.value);
      plotly.purge(target);
      place.querySelectorAll(".landscape-figure, .landscape-slider").forEach((part) => part.remove());
      draw(place).then(() => choose(place, chosen)).catch((error) => console.error(error));
    });
    watch.observe(place);
  };

  const choose = (place, chosen) =>
    place.querySelectorAll(".landscape-slider").forEach((input, k) => {
      if (input.value === chosen[k]) return;
      input.value = chosen[k];
      input.dispatchEvent(new Event("input"));
    });

  // Plotly's sliders are only drawn. A real one beside each serves arrow keys and screen readers.
  const mirrorSliders = (plotly, target, sliders) =>
    sliders.forEach((slider, k) => {
      const last = slider.steps.length - 1;
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: last });
      const tell = (index) => {
        input.value = index;
        input.setAttribute("aria-valuetext", slider.steps[index].label);
      };
      input.className = "landscape-slider";
      input.setAttribute("aria-label", slider.currentvalue.prefix.replace(/:\s*$/, ""));
      input.addEventListener("input", () => {
        const index = Number(input.value);
        plotly.update(target, slider.steps[index].args[0], { [`sliders[${k}].active`]: index });
        tell(index);
      });
      target.on("plotly_sliderchange", (event) => tell(event.slider._index === k ? event.slider.active : input.value));
      tell(slider.active || 0);
      target.after(input);
    });

  const start = () => {
    const seen = new IntersectionObserver(
      (entries) =>
        entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
          seen.unobserve(entry.target);
          draw(entry.target).catch((error) => console.error(error));
        }),
      { rootMargin: "400px" }
    );
    document.querySelectorAll(".landscape-live").forEach((place) => seen.observe(place));
  };

  // Docutils calls the references a list, but none of its children an item of one.
  const mendLists = () =>
    document.querySelectorAll(".citation-list[role=list]").forEach((list) => list.removeAttribute("role"));

  // An interval stands below its value: a row of five of them fits the page.
  const mendTables = () => {
    // A note that many rows share is said once, below the table.
    document.querySelectorAll("table.dataframe").forEach((table) => {
      if (table.tHead?.rows[0]?.lastElementChild?.textContent !== "note") return;
      const texts = [...table.tBodies[0].rows].map((row) => row.lastElementChild.textContent);
      [...table.rows].forEach((row) => row.lastElementChild.remove());
      const said = [...new Set(texts)].filter(Boolean).join("; ");
      if (said) table.after(Object.assign(document.createElement("p"), { className: "landscape-note", textContent: said + "." }));
    });
    document.querySelectorAll("table.dataframe td").forEach((cell) => {
      const [, value, interval] = cell.textContent.match(/^(\S+) (\((?:.+ to .+|no interval.*)\))$/) || [];
      if (!interval) return;
      const below = Object.assign(document.createElement("span"), { className: "landscape-interval", textContent: interval });
      cell.replaceChildren(value, " ", below);
    });
  };

  // A wide table or figure scrolls in its box; where something lies beyond the edge, the style says so.
  const fade = (selector) => {
    const mark = (box) =>
      box.classList.toggle("landscape-more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    const watch = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
    document.querySelectorAll(selector).forEach((box) => {
      box.addEventListener("scroll", () => mark(box), { passive: true });
      watch.observe(box);
    });
  };

  const markOverflow = () =>
    fade(".cell_output, .cell_output .text_html, .cell_output pre, .pst-scrollable-table-container");

  // A formula within the text that is wider than the text scrolls by itself.
  const mendFormulas = () => {
    Promise.resolve(window.MathJax?.startup?.promise).then(() => {
      document.querySelectorAll("p span.math, li span.math").forEach((formula) => {
        const room = formula.closest("p, li").clientWidth;
        const width = Math.max(formula.getBoundingClientRect().width, formula.scrollWidth);
        formula.classList.toggle("landscape-wide", width >= room);
      });
      fade(".landscape-wide, div.math, div.math mjx-container");
    });
  };

  const begin = () => [start, mendLists, mendTables, markOverflow, mendFormulas].forEach((each) => each());
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
