// The page in another language, by the WebUI's localization files: replaces text nodes, titles, placeholders and aria-labels
// that are exactly a text of the file. Only where app.py asks for it with `tiTrainerLanguage`: the WebUI has such a script.
// Left out: what users typed, lists of names and images, and elements with translate="no".
(() => {
    const wanted = window.tiTrainerLanguage;
    const ATTRIBUTES = ["title", "placeholder", "aria-label"];
    const VERBATIM = "script, style, textarea, code, pre, [translate=no], [role=listbox], .options, .grid-wrap, .file-preview";
    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document.body;
    let texts = null; // by the English text
    let measured = null;

    // The file of the first of the user's languages that there is; null for English and for all others.
    function fileOf(languages) {
        for (const each of languages) {
            const tag = each.toLowerCase();
            if (/^(en|ja|zh)\b/.test(tag)) {
                return tag.startsWith("en") ? null : tag.startsWith("ja") ? "ja_JP" : /\b(tw|hk|mo|hant)\b/.test(tag) ? "zh_TW" : "zh_CN";
            }
        }
        return null;
    }

    function found(text, element) {
        const translated = Object.hasOwn(texts, text) ? texts[text] : undefined;
        return translated && translated !== text && !element?.closest(VERBATIM) ? translated : undefined;
    }

    function translateText(node) {
        const text = node.data.trim();
        const translated = text && found(text, node.parentElement);
        if (translated) {
            node.data = translated;
            if (node.parentElement.closest("[role=tab]")) {
                clearTimeout(measured); // gradio 6 has measured which tabs have room
                measured = setTimeout(() => window.dispatchEvent(new Event("resize")), 50);
            }
        }
    }

    function translateAttributes(element) {
        for (const name of ATTRIBUTES) {
            const text = element.getAttribute(name);
            const translated = text && found(text, element.tagName === "TEXTAREA" ? element.parentElement : element);
            if (translated) {
                element.setAttribute(name, translated);
            }
        }
    }

    function translate(node) {
        if (node.nodeType === Node.TEXT_NODE) {
            translateText(node);
        } else if (node.nodeType === Node.ELEMENT_NODE) {
            translateAttributes(node);
            const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
            while (walker.nextNode()) {
                (walker.currentNode.nodeType === Node.TEXT_NODE ? translateText : translateAttributes)(walker.currentNode);
            }
        }
    }

    async function start(file) {
        window.localization = texts = await (await fetch(`./ti_trainer/localizations/${file}.json`)).json(); // as in the WebUI
        document.documentElement.lang = file.replace("_", "-"); // chooses the font: Japanese and Chinese share characters
        const observer = new MutationObserver((changes) => {
            for (const each of changes) {
                if (each.type === "childList") {
                    each.addedNodes.forEach(translate);
                } else if (each.type === "attributes") {
                    translateAttributes(each.target);
                } else {
                    translateText(each.target);
                }
            }
            observer.takeRecords(); // of our own changes
        });
        const all = { childList: true, subtree: true, characterData: true };
        observer.observe(root(), { ...all, attributes: true, attributeFilter: ATTRIBUTES });
        translate(root());
        observer.takeRecords();
    }

    const file = wanted && fileOf(wanted === "auto" ? navigator.languages : [wanted]);
    if (file) {
        start(file).catch(() => {}); // the page stays in English
    }
})();
