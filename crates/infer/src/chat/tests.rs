use super::*;

fn chat(text: &str) -> Chat {
    let message = Value::from_pairs([("role", "user"), ("content", text)]);
    Chat { messages: vec![message], ..Chat::default() }
}

fn render(template: &str) -> Result<String, ChatError> {
    ChatTemplate::parse(template, BTreeMap::new())?.render(&chat("hello"))
}

#[test]
fn a_stranger_s_template_can_waste_neither_time_nor_memory() {
    let fails = |template: &str| {
        let error = render(template).unwrap_err();
        assert!(matches!(error, ChatError::Render(_)), "{template}: {error}");
    };
    fails("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}");
    fails(
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    );
    fails("{{ 'a' * 1000000000 }}{{ 'a' * 1000000000 }}");
    fails("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}");
    fails("{{ messages[0].content.nothing.more }}");
    fails("{{ undefined_thing | tojson }}");
    for format in [
        "'%.70000e' | format(3)",
        "'%(a)70000d' | format(a=3)",
        "'%%%-#70000.2f' | format(3)",
        "'{:70000}'.format(3)",
        "'{:>70000}'.format('a')",
        "'{:}<70000}'.format('a')",
        "'{a[0]:{^+#070000_.3f}'.format(a=[1])",
        "'{:.70000e}'.format(3)",
        "'%%%(名)s' | format(a=3)",
        "'%(%%名)s' | format(a=3)",
        "'{a[名]}'.format(a={'名': 1})",
        "'{{}}{0.a[x][}名]}'.format({'x': 1})",
        "'{a[{名'.format(a=1)",
        "'{:99999999999999999999999}'.format(3)",
    ] {
        fails(&format!("{{{{ {format} }}}}"));
    }
    // In time that grows with the format's length, and no faster.
    for part in ["{a", "{[", "{:<", "{:9:"] {
        fails(&format!("{{{{ '{}'.format(1) }}}}", part.repeat(250_000)));
    }
    for part in ["%(", "%5", "%-"] {
        fails(&format!("{{{{ '{}' | format(1) }}}}", part.repeat(250_000)));
    }
    let deep = format!("{}1{}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(matches!(render(&format!("{{{{ {deep} }}}}")), Err(ChatError::Malformed { .. })));
    let long = "x".repeat(MAX_TEMPLATE as usize + 1);
    assert!(matches!(render(&long), Err(ChatError::TooLarge { .. })));
    for wrong in ["{% if %}", "{% include 'default' %}", "{% import 'default' as d %}"] {
        assert!(matches!(render(wrong), Err(ChatError::Malformed { .. })), "{wrong}");
    }
}

#[test]
fn formats_are_those_of_python() {
    for (format, text) in [
        ("'%-6s|%05.1f %(x)s' | format('a', 2.25)", None),
        ("'%-6s|%05.1f%%' | format('a', 2.25)", Some("a     |002.2%")),
        ("'{:>6}|{:_^8}|{:,}'.format('a', 'b', 1234567)", Some("     a|___b____|1,234,567")),
        ("'100%%(约) %s' | format(1)", Some("100%(约) 1")),
        ("'[名] {{a[名]}} {a[x]}'.format(a={'x': '名'})", Some("[名] {a[名]} 名")),
        ("'{}: 20261128 {:02d} (70000 d)'.format('day', 3)", Some("day: 20261128 03 (70000 d)")),
    ] {
        assert_eq!(render(&format!("{{{{ {format} }}}}")).ok().as_deref(), text, "{format}");
    }
}

#[test]
fn a_template_may_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&error, ChatError::Refused(why) if why == "roles must alternate"), "{error}");
}

#[test]
fn a_folder_has_templates_in_a_file_or_in_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let open = || ChatTemplate::open(dir.path());
    assert!(open().unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#);
    assert!(open().unwrap().is_none());

    let tools = Chat { tools: vec![Value::from("f")], ..chat("hi") };
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "chat_template": [
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"},
            {"name": "tool_use", "template": "tools"}]}"#,
    );
    let template = open().unwrap().unwrap();
    assert_eq!(
        (template.render(&chat("hi")).unwrap(), template.render(&tools).unwrap()),
        ("<s>hi".into(), "tools".into())
    );

    write(CHAT_TEMPLATE, "{{ bos_token }} of a file\n");
    let template = open().unwrap().unwrap();
    assert_eq!(template.render(&tools).unwrap(), "<s> of a file");
    std::fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
    write("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!(open().unwrap().unwrap().render(&tools).unwrap(), "more");

    write("tokenizer_config.json", r#"{"chat_template": 5}"#);
    assert!(open().unwrap_err().to_string().contains("must be text"));
    write("tokenizer_config.json", "{");
    assert!(matches!(open(), Err(ChatError::Malformed { .. })));
    write(CHAT_TEMPLATE, &"x".repeat(MAX_TEMPLATE as usize + 1));
    write("tokenizer_config.json", "{}");
    assert!(matches!(open(), Err(ChatError::TooLarge { .. })));
}
