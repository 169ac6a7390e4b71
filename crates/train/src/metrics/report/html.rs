//! Text that goes into a page: escaped always, and the page's own words in two languages.

use std::fmt::{Display, Formatter, Result, Write};

/// Foreign text, for the inside of an element or of a quoted attribute.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut Formatter) -> Result {
        struct Escape<'a, 'b>(&'a mut Formatter<'b>);
        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> Result {
                for c in text.chars() {
                    match c {
                        '&' => self.0.write_str("&amp;")?,
                        '<' => self.0.write_str("&lt;")?,
                        '>' => self.0.write_str("&gt;")?,
                        '"' => self.0.write_str("&quot;")?,
                        '\'' => self.0.write_str("&#39;")?,
                        '\n' | '\t' => self.0.write_char(c)?,
                        // Neither HTML nor XML has a way to write these.
                        c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => self.0.write_char('\u{fffd}')?,
                        c => self.0.write_char(c)?,
                    }
                }
                Ok(())
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

/// A JSON value for the inside of a script element: no `<` can end it.
pub fn script(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// Words of the page, of which it shows one language.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// English.
    pub en: String,
    /// Chinese.
    pub zh: String,
}

/// Words in English and Chinese.
pub fn label(en: impl Into<String>, zh: impl Into<String>) -> Label {
    Label { en: en.into(), zh: zh.into() }
}

impl Label {
    /// The same in both languages.
    pub fn same(text: impl Into<String>) -> Label {
        let text = text.into();
        Label { zh: text.clone(), en: text }
    }

    /// As part of a text in a drawing.
    pub fn svg(&self) -> String {
        self.tagged("tspan")
    }

    /// Both, for an attribute.
    pub fn both(&self) -> String {
        if self.en == self.zh { Text(&self.en).to_string() } else { format!("{} / {}", Text(&self.en), Text(&self.zh)) }
    }

    fn tagged(&self, tag: &str) -> String {
        if self.en == self.zh {
            return Text(&self.en).to_string();
        }
        let (en, zh) = (Text(&self.en), Text(&self.zh));
        format!(r#"<{tag} class="en" lang="en">{en}</{tag}><{tag} class="zh" lang="zh">{zh}</{tag}>"#)
    }
}

impl Display for Label {
    fn fmt(&self, f: &mut Formatter) -> Result {
        f.write_str(&self.tagged("span"))
    }
}
