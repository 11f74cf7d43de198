// The parts of the chat that ipywidgets lacks: names and roles for screen readers, a log that scrolls
// to its end, a focus that is never lost, Enter after the text that it sends, Ctrl-Enter in the
// box for several lines. In Colab the page also asks the kernel for new text, because Colab may lose
// messages that a widget sends between two requests.
(function (name, flush) {
  let tries = 0;
  (function attach() {
    const fresh = [...document.querySelectorAll("." + name)].filter((root) => !root.dataset.moeChat);
    fresh.forEach(begin);
    if (!fresh.length && ++tries < 1200) setTimeout(attach, 50);
  })();

  function begin(root) {
    root.dataset.moeChat = "on";
    const set = (selector, attributes) => {
      const element = root.querySelector(selector);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", "Chat with the model");
    root.querySelectorAll("textarea, .moe-line input").forEach((box) => { box.dir = "auto"; });
    set(".moe-suggested", {role: "group", "aria-label": "Questions to try"});
    set(".moe-statusline .widget-html-content", {role: "status", "aria-live": "polite"});
    const log = set(".moe-log",
      {role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: "0"});
    let following = true; // until the reader scrolls up
    const toEnd = () => {
      log.querySelectorAll(".moe-now .moe-text").forEach((box) => { box.scrollTop = box.scrollHeight; });
      if (following) log.scrollTop = log.scrollHeight;
    };
    log.addEventListener("scroll", () => {
      following = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    });
    new MutationObserver(toEnd).observe(log, {childList: true, subtree: true, characterData: true});
    toEnd();
    // A disabled button loses the focus: give it to the message box.
    root.addEventListener("click", (event) => {
      if (!event.target.closest("button.moe-turn")) return;
      following = true;
      const boxes = root.querySelectorAll(".moe-line input, .moe-lines textarea");
      [...boxes].find((box) => box.offsetParent)?.focus();
    });
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      const box = event.target;
      // Send the whole text to the kernel before the key.
      if (box.closest(".moe-line")) box.dispatchEvent(new Event("change", {bubbles: true}));
      if (box.tagName !== "TEXTAREA") return;
      event.preventDefault();
      event.stopPropagation();
      if (box.closest(".moe-lines") && (event.ctrlKey || event.metaKey)) {
        box.dispatchEvent(new Event("change", {bubbles: true}));
        root.querySelector(".moe-send").click();
      } else { // JupyterLab blocks Enter in the boxes of ipywidgets 7
        document.execCommand("insertText", false, "\n"); // so that undo works
      }
    }, true);
    if (flush && window.google?.colab) pump(root);
  }

  async function pump(root) {
    while (document.contains(root)) {
      let rest = 125;
      if (root.classList.contains("moe-busy")) {
        try {
          await window.google.colab.kernel.invokeFunction(flush, [], {});
        } catch (error) {
          console.warn(String(error));
          rest = 2000;
        }
      }
      await new Promise((wake) => setTimeout(wake, rest));
    }
  }
})("$NAME", "$FLUSH");
