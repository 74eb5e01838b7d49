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

  const draw = async (place) => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const plotly = await loadPlotly();
    const target = document.createElement("div");
    place.append(target);
    const narrow = place.clientWidth < 500;
    const layout = { ...figure.layout, autosize: true, height: narrow ? 380 : figure.layout.height };
    delete layout.width;
    const data = figure.data.map((trace) => (narrow ? { ...trace, showscale: false } : trace));
    await plotly.newPlot(target, data, layout, { responsive: true, displaylogo: false });
    mirrorSliders(plotly, target, figure.layout.sliders || []);
    place.parentElement.classList.add("landscape-drawn");
    place.dataset.ready = "true";
  };

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

  const begin = () => [start, mendLists].forEach((each) => each());
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
