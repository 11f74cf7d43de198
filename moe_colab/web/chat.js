// What ipywidgets cannot do: names and roles for a screen reader, a log that follows its end, Enter
// that comes after the text it sends, Ctrl-Enter in the box of several lines, and in Colab a pump: the page asks the kernel for what is
// new, because Colab may not show what a widget says between two cells.
(function (name, flush) {
  let tries = 0;
  (function attach() {
    const root = document.querySelector("." + name);
    if (!root) {
      if (++tries < 200) setTimeout(attach, 50);
      return;
    }
    const set = (selector, attributes) => {
      const element = root.querySelector(selector);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", "Chat with the model");
    const log = set(".moe-log", {role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: "0"});
    set(".moe-statusline .widget-html-content", {role: "status", "aria-live": "polite"});
    new MutationObserver(() => { log.scrollTop = log.scrollHeight; })
      .observe(log, {childList: true, subtree: true, characterData: true});
    log.scrollTop = log.scrollHeight;
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      const box = event.target;
      // The text goes to the kernel before the key does, and whole.
      if (box.closest(".moe-line")) box.dispatchEvent(new Event("change", {bubbles: true}));
      if (box.tagName !== "TEXTAREA") return;
      event.preventDefault();
      event.stopPropagation();
      if (box.closest(".moe-lines") && (event.ctrlKey || event.metaKey)) {
        box.dispatchEvent(new Event("change", {bubbles: true}));
        root.querySelector(".moe-send").click();
      } else { // JupyterLab keeps Enter from the boxes of ipywidgets 7
        box.setRangeText("\n", box.selectionStart, box.selectionEnd, "end");
        box.dispatchEvent(new Event("input", {bubbles: true}));
      }
    }, true);
    const colab = window.google && window.google.colab;
    if (flush && colab) {
      (async function pump() {
        while (document.contains(root)) {
          if (root.classList.contains("moe-busy")) {
            try { await colab.kernel.invokeFunction(flush, [], {}); } catch (error) { console.warn(String(error)); }
          }
          await new Promise((wake) => setTimeout(wake, 125));
        }
      })();
    }
  })();
})("$NAME", "$FLUSH");
