// As much of a document as markdown.js and dom.js ask for: elements, attributes, text. Markup is written out from it, with
// everything escaped, so that a test sees exactly which tags were made.

class Text {
    constructor(data) {
        this.data = data;
    }

    get textContent() {
        return this.data;
    }

    get html() {
        return escape(this.data);
    }
}

const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

class Element {
    childNodes = [];
    parent = null;
    #attributes = new Map();

    constructor(name) {
        this.localName = name;
    }

    get children() {
        return this.childNodes.filter((node) => node instanceof Element);
    }

    get lastElementChild() {
        return this.children.at(-1) ?? null;
    }

    get textContent() {
        return this.childNodes.map((node) => node.textContent).join("");
    }

    append(...nodes) {
        for (const node of nodes) {
            if (typeof node === "object") node.parent = this;
            this.childNodes.push(typeof node === "object" ? node : new Text(String(node)));
        }
    }

    remove() {
        this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1);
    }

    replaceWith(node) {
        node.parent = this.parent;
        this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1, node);
    }

    setAttribute(name, value) {
        this.#attributes.set(name, String(value));
    }

    getAttribute(name) {
        return this.#attributes.get(name) ?? null;
    }

    addEventListener() {}

    get html() {
        const attributes = [...this.#attributes].map(([name, value]) => ` ${name}="${escape(value)}"`).join("");
        return `<${this.localName}${attributes}>${this.innerHtml}</${this.localName}>`;
    }

    get innerHtml() {
        return this.childNodes.map((node) => node.html).join("");
    }
}

globalThis.document = { createElement: (name) => new Element(name), createElementNS: (_, name) => new Element(name) };
