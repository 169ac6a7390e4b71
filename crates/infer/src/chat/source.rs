//! What must be changed in a template's source before minijinja can read it.

/// `{% generation %}…{% endgeneration %}` marks what the assistant said, for training; in the text it is a scope and nothing
/// else, and so is `{% with %}…{% endwith %}`. Comments, expressions and raw text are left alone.
pub fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map(|end| end + 2),
            Some(b'{') if !raw => end_of(tag, "}}"),
            Some(b'%') => end_of(tag, "%}"),
            _ => Some(1),
        };
        // Without an end it is an error, which the parser will describe.
        let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
        let word = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
        let word = word.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" if !raw => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" if !raw => out.push_str(&tag.replace("endgeneration", "endwith")),
            _ => out.push_str(tag),
        }
        raw = word == "raw" || raw && word != "endraw";
        rest = after;
    }
    out + rest
}

/// Bytes of a tag up to its end, which does not count inside quotes.
fn end_of(tag: &str, end: &str) -> Option<usize> {
    let mut quote = None;
    let mut bytes = tag.bytes().enumerate().skip(2);
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(open), _) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, _) if tag.as_bytes()[at..].starts_with(end.as_bytes()) => return Some(at + end.len()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_replaced() {
        let same = [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set x = \"%} {% generation %}\" %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{ {% if generation %}{",
            "{% generation",
            "你{好",
        ];
        same.iter().for_each(|text| assert_eq!(&without_generation_tags(text), text));
        let text = "a{%- generation -%}b{% endgeneration %}{%generation%}{% raw %}{{{% endraw %}{%+ endgeneration +%}";
        let expected = "a{%- with -%}b{% endwith %}{%with%}{% raw %}{{{% endraw %}{%+ endwith +%}";
        assert_eq!(without_generation_tags(text), expected);
    }
}
