//! A tiny random model serves; what it says is compared with what it says when asked alone.

use super::*;
use crate::testing::{checkpoint, engine};
use std::sync::mpsc;
use wudao_device::{Cpu, DType};
use wudao_model::WeightOptions;
use wudao_model::weights::{self, Budget, ExpertReads};

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { prompt, max_tokens, ignore_eos: true, ..Request::default() }
}

/// Submits and hands over the stream.
fn start(engine: &Engine, request: Request) -> (Ticket, mpsc::Receiver<Event>) {
    let (tx, rx) = mpsc::channel();
    (engine.submit(request, Box::new(move |e| tx.send(e).is_ok())).unwrap(), rx)
}

/// All events of one request.
fn ask(engine: &Engine, request: Request) -> Vec<Event> {
    let (_ticket, rx) = start(engine, request);
    rx.into_iter().collect()
}

/// The status with nothing to do. A reader sees the end of its stream a moment before the status does.
fn at_rest(engine: &Engine) -> Status {
    let since = Instant::now();
    loop {
        let status = engine.status();
        if status.running == 0 && status.waiting == 0 || since.elapsed() > Duration::from_secs(20) {
            return status;
        }
        std::thread::yield_now();
    }
}

fn ids(events: &[Event]) -> Vec<u32> {
    events.iter().filter_map(|e| if let Event::Token { id, .. } = e { Some(*id) } else { None }).collect()
}

fn text(events: &[Event]) -> String {
    events.iter().filter_map(|e| if let Event::Token { text, .. } = e { Some(text.as_str()) } else { None }).collect()
}

fn done(events: &[Event]) -> (Stop, Option<String>, Usage) {
    match events.last() {
        Some(Event::Done { stop, stop_string, usage }) => (*stop, stop_string.clone(), *usage),
        other => panic!("ends with {other:?}"),
    }
}

#[test]
fn a_completion_is_that_of_generate() {
    let prompt = "the lazy fox";
    for sparse in [false, true] {
        let own = checkpoint(sparse, DType::F32);
        let how = crate::Generation { max_tokens: 40, sampling: Sampling::default(), stop: vec![], constraint: None };
        let expected = own.generate(prompt, &how, &mut |_| true).unwrap();
        let mut ids_in: Vec<u32> = own.config.end_of_text().into_iter().collect();
        ids_in.extend(own.tokenizer.encode(prompt).unwrap());
        let engine = Engine::start(own, EngineOptions::default()).unwrap();
        let events = ask(&engine, Request { prompt: ids_in, max_tokens: 40, ..Request::default() });
        assert_eq!((ids(&events), text(&events)), (expected.tokens, expected.text));
        assert_eq!(done(&events).0, expected.stop);
        let status = at_rest(&engine);
        assert_eq!(status.counters.completion_tokens as usize, done(&events).2.completion_tokens);
        assert_eq!((status.running, status.waiting), (0, 0));
    }
}

#[test]
fn whoever_waits_is_told_all_of_it_and_may_stop_it() {
    let engine = engine(EngineOptions::default());
    let asked = || Request { sampling: Sampling { seed: 4, ..Sampling::default() }, ..request(vec![40, 41], 200) };
    let mut streamed = String::new();
    let whole = engine
        .complete(asked(), &mut |piece| {
            streamed.push_str(piece);
            true
        })
        .unwrap();
    let events = ask(&engine, asked());
    assert_eq!((&whole.completion.text, &whole.completion.tokens), (&text(&events), &ids(&events)));
    assert_eq!((streamed, whole.completion.stop), (text(&events), Stop::MaxTokens));
    assert_eq!((whole.usage.prompt_tokens, whole.usage.completion_tokens), (2, 200));
    assert!(whole.first_token <= whole.last_token && whole.tokens_per_second().unwrap() > 0.0);

    let mut left = 5;
    let part = engine
        .complete(asked(), &mut |piece| {
            left -= usize::from(!piece.is_empty());
            left > 0
        })
        .unwrap();
    assert_eq!(part.completion.stop, Stop::Reader);
    assert!(part.usage.completion_tokens < 200 && whole.completion.text.starts_with(&part.completion.text));
    let refused = engine.complete(request(vec![], 3), &mut |_| true);
    assert_eq!(refused, Err(CompleteError::Rejected(Rejected::Empty)));
}

#[test]
fn log_probabilities_of_the_prompt_are_those_of_writing_it() {
    let engine = engine(EngineOptions { prefill_chunk: 5, ..EngineOptions::default() });
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let first = vec![5, 9, 30, 7];
    let written = ask(&engine, Request { sampling: greedy, logprobs: Some(2), ..request(first.clone(), 12) });
    let whole: Vec<u32> = first.iter().copied().chain(ids(&written)).collect();
    let read = ask(&engine, Request { prompt_logprobs: Some(2), ..request(whole.clone(), 0) });
    let Event::Prompt(scores) = &read[0] else { panic!("{:?}", read[0]) };
    assert_eq!((scores.len(), scores[0].clone()), (whole.len(), None));
    assert_eq!(done(&read), (Stop::MaxTokens, None, Usage { prompt_tokens: 16, ..Usage::default() }));
    let own = written.iter().filter_map(|e| if let Event::Token { logprob, .. } = e { logprob.clone() } else { None });
    for (score, own) in scores[first.len()..].iter().zip(own) {
        let score = score.clone().unwrap();
        assert_eq!(own.top[0].1, own.logprob, "greedy takes the best");
        assert_eq!(score.top.iter().map(|t| t.0).collect::<Vec<_>>(), own.top.iter().map(|t| t.0).collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_string_ends_and_is_named() {
    let engine = engine(EngineOptions::default());
    let free = ask(&engine, request(vec![40, 41], 60));
    let all = text(&free);
    let stop: String = all.chars().skip(6).take(2).collect();
    let events = ask(&engine, Request { stop: vec!["\u{1}never".into(), stop.clone()], ..request(vec![40, 41], 60) });
    assert_eq!(text(&events), all[..all.find(&stop).unwrap()]);
    assert_eq!((done(&events).0, done(&events).1), (Stop::StopString, Some(stop)));
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    let engine = engine(EngineOptions { context: 10, ..EngineOptions::default() });
    let submit = |r: Request| engine.submit(r, Box::new(|_| true)).map(drop);
    assert_eq!(submit(request(vec![], 3)), Err(Rejected::Empty));
    assert_eq!(submit(request(vec![1; 10], 3)), Err(Rejected::TooLong { tokens: 10, limit: 10 }));
    assert_eq!(submit(request(vec![1; 10], 0)), Ok(()));
    let vocab = engine.config().vocab_size;
    assert_eq!(submit(request(vec![1, 5000], 3)), Err(Rejected::BadToken { id: 5000, vocab }));
    let sampling = Sampling { top_p: 2.0, ..Sampling::default() };
    assert!(matches!(submit(Request { sampling, ..request(vec![1], 3) }), Err(Rejected::Sampling(_))));
    assert_eq!(done(&ask(&engine, request(vec![1; 8], 5))).0, Stop::Context);
    let other = engine.clone();
    engine.shutdown(Duration::ZERO);
    assert_eq!(other.submit(request(vec![1], 3), Box::new(|_| true)).map(drop), Err(Rejected::Closed));
    let start = |o| Engine::start(checkpoint(false, DType::F32), o).err().unwrap().to_string();
    assert!(start(EngineOptions { context: 999, ..EngineOptions::default() }).contains("256"));
    let bytes = EngineOptions { context: 64, cache_bytes: 1000, ..EngineOptions::default() };
    assert!(start(bytes).contains("give the cache"));
    let wide = EngineOptions { cache_dtype: Some(DType::F64), ..EngineOptions::default() };
    assert!(start(wide).contains("F64"));
    assert!(start(EngineOptions { batch: 0, ..EngineOptions::default() }).contains("batch"));
}

#[test]
fn a_reader_who_leaves_ends_the_request() {
    let engine = engine(EngineOptions::default());
    let (ticket, rx) = start(&engine, request(vec![1, 2], 250));
    rx.recv().unwrap();
    drop(ticket);
    let rest = rx.into_iter().count();
    assert!(rest < 249, "{rest} more events");
    let mut left = 3;
    let (tx, rx) = mpsc::channel();
    let sink = move |e: Event| {
        left -= 1;
        tx.send(e).unwrap();
        left > 0
    };
    let _ticket = engine.submit(request(vec![1, 2], 250), Box::new(sink)).unwrap();
    assert_eq!(rx.into_iter().count(), 3);
    assert_eq!(ask(&engine, request(vec![3], 2)).len(), 3);
    assert_eq!(at_rest(&engine).counters.cancelled, 2);
}

#[test]
fn an_embedding_is_the_mean_or_the_last_hidden_state() {
    let engine = engine(EngineOptions::default());
    let embed = |ids: Vec<u32>, pooling| {
        let (tx, rx) = mpsc::channel();
        engine.embed(ids, pooling, Box::new(move |x| tx.send(x).unwrap())).unwrap();
        rx.recv().unwrap().unwrap()
    };
    assert_eq!(embed(vec![7], Pooling::Mean), embed(vec![7], Pooling::Last));
    let (mean, last) = (embed(vec![7, 8], Pooling::Mean), embed(vec![7, 8], Pooling::Last));
    assert_eq!(mean.len(), 32);
    assert_ne!(mean, last);
}

/// A mixed crowd: prompts that share beginnings, all kinds of sampling, log probabilities for some.
fn crowd(seed: u64, count: usize, vocab: usize) -> Vec<Request> {
    let mut random = wudao_device::check::Random(seed);
    let beginnings: Vec<Vec<u32>> = [70, 33, 5].map(|n| (0..n).map(|_| random.below(vocab) as u32).collect()).to_vec();
    let request = |i: usize| {
        let mut prompt = beginnings[random.below(3)].clone();
        prompt.extend((0..1 + random.below(40)).map(|_| random.below(vocab) as u32));
        Request {
            sampling: Sampling {
                temperature: [0.0, 0.7, 1.3][i % 3],
                presence_penalty: [0.0, 0.5][i % 2],
                seed: i as u64,
                ..Sampling::default()
            },
            logprobs: [None, Some(3)][i % 2],
            prompt_logprobs: [None, None, None, Some(1)][i % 4],
            client: (i % 3) as u64,
            ..request(prompt, 1 + random.below(60))
        }
    };
    (0..count).map(request).collect()
}

/// Events but for what the cache did.
fn told(mut events: Vec<Event>) -> Vec<Event> {
    if let Some(Event::Done { usage, .. }) = events.last_mut() {
        usage.cached_tokens = 0;
    }
    events
}

fn pages(config: &Config, pages: usize) -> usize {
    wudao_model::PagedCache::<Cpu>::page_bytes(config, DType::F32) * pages
}

/// Nobody can tell from what it is told whether it was alone: not from its company, the batch, the chunks, the prefix cache,
/// nor from having been thrown out.
#[test]
fn everyone_is_told_what_they_are_told_alone() {
    for sparse in [false, true] {
        let start = |options| Engine::start(checkpoint(sparse, DType::F32), options).unwrap();
        let one = start(EngineOptions { batch: 1, prefix_cache: false, ..EngineOptions::default() });
        let requests = crowd(5, 24, one.config().vocab_size);
        let expected: Vec<_> = requests.iter().map(|r| ask(&one, r.clone())).collect();
        assert_eq!(one.status().counters.cached_tokens, 0);
        for dtype in [DType::Bf16, DType::I8] {
            let narrow = |batch| {
                let (cache_dtype, prefix_cache) = (Some(dtype), batch > 1);
                start(EngineOptions { cache_dtype, batch, prefix_cache, prefill_chunk: 9, ..EngineOptions::default() })
            };
            let engine = narrow(9);
            let streams: Vec<_> = requests.iter().map(|r| self::start(&engine, r.clone())).collect();
            let streams: Vec<_> = streams.into_iter().map(|(_ticket, rx)| told(rx.into_iter().collect())).collect();
            assert!(engine.status().counters.cached_tokens > 0);
            let engine = narrow(1);
            assert!(requests.iter().zip(&streams).all(|(r, all)| &told(ask(&engine, r.clone())) == all), "{dtype:?}");
            assert!(streams != expected, "keys of fewer bits change something");
            // Two heads of 12 numbers in three layers.
            let row = if dtype == DType::I8 { 12 + 4 } else { 2 * 12 };
            assert_eq!(engine.status().cache_token_bytes, 2 * 3 * 2 * row);
        }
        for (batch, prefill_chunk, prefix_cache, room) in
            [(16, 256, true, 1000), (5, 7, true, 20), (24, 64, false, 14), (3, 1, false, 1000), (24, 1000, true, 13)]
        {
            let cache_bytes = pages(one.config(), room);
            let context = 13 * wudao_device::PAGE;
            let options =
                EngineOptions { context, batch, prefill_chunk, prefix_cache, cache_bytes, ..Default::default() };
            let engine = start(options.clone());
            let streams: Vec<_> = requests.iter().map(|r| self::start(&engine, r.clone())).collect();
            for ((_ticket, rx), expected) in streams.into_iter().zip(&expected) {
                assert_eq!(&told(rx.into_iter().collect()), expected, "{options:?}");
            }
            let Status { running, waiting, cache_used, counters, .. } = at_rest(&engine);
            assert_eq!((running, waiting, cache_used, counters.max_tokens), (0, 0, 0, 24));
            assert_eq!(counters.cached_tokens > 0, prefix_cache, "{options:?}");
            assert_eq!(counters.preemptions > 0, room <= 20, "{options:?}");
        }
    }
}

/// Nor does anybody notice that experts stay in their file, but who looks at the status.
#[test]
fn experts_in_a_file_say_what_those_in_memory_say() {
    let (own, dir) = (checkpoint(true, DType::F32), tempfile::tempdir().unwrap());
    let store = own.model.init(&own.device, 3);
    weights::save(&own.device, dir.path(), &own.config, &store, DType::F32, 1 << 30).unwrap();
    own.tokenizer.save(dir.path()).unwrap();
    let how = WeightOptions::plain(DType::F32);
    // Room for some of 16 experts, of three matrices of 24 × 32.
    let bytes = own.weights.bytes() - 11 * 3 * 24 * 32 * 4;
    let own = Engine::start(own, EngineOptions::default()).unwrap();
    let open = |bytes| Checkpoint::open_within(&Cpu::new(2), dir.path(), &how, Some(Budget { bytes, beside: 0 }));
    let engine = Engine::start(open(bytes).unwrap(), EngineOptions::default()).unwrap();
    for r in crowd(4, 8, own.config().vocab_size) {
        assert_eq!(told(ask(&engine, r.clone())), told(ask(&own, r)));
    }
    let experts = at_rest(&engine).experts;
    assert!(experts.found > 0 && experts.found < experts.wanted && experts.bytes > 0, "{experts:?}");
    assert!(experts.held > 0 && experts.held <= experts.room, "{experts:?}");
    assert_eq!(at_rest(&own).experts, ExpertReads::default());
    assert!(open(1000).is_err_and(|error| error.to_string().contains("at least")));
}

/// Guesses change how many steps it takes, and nothing else.
#[test]
fn guesses_change_no_bit() {
    let one = engine(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
    let guessing =
        |batch| engine(EngineOptions { guesses: 6, batch, prefix_cache: batch > 1, ..EngineOptions::default() });
    let mut requests = crowd(8, 12, one.config().vocab_size);
    // Texts that go round in circles, at low temperature.
    requests.extend((0..6).map(|i| Request {
        sampling: Sampling { temperature: 0.1 * i as f32, seed: i, ..Sampling::default() },
        stop: if i == 3 { vec![String::from("e")] } else { vec![] },
        ..request([7, 8, 9, 10].repeat(5), 200)
    }));
    let expected: Vec<_> = requests.iter().map(|r| ask(&one, r.clone())).collect();
    let (alone, together) = (guessing(1), guessing(9));
    for (r, expected) in requests.iter().zip(&expected) {
        assert_eq!(&ask(&alone, r.clone()), expected);
    }
    let streams: Vec<_> = requests.iter().map(|r| start(&together, r.clone())).collect();
    for ((_ticket, rx), expected) in streams.into_iter().zip(&expected) {
        assert_eq!(&told(rx.into_iter().collect()), expected);
    }
    let (with, without) = (at_rest(&alone).counters, at_rest(&one).counters);
    assert_eq!(with.completion_tokens, without.completion_tokens);
    assert!(with.guessed >= with.guessed_right && with.guessed_right > 0);
    // A right guess saves its step, unless the text ended at it.
    let saved = without.steps - with.steps;
    assert!(saved > 0 && saved <= with.guessed_right, "{saved} of {}", with.guessed_right);
}

/// A small model that guesses changes how many steps it takes, and nothing else: neither a bad one nor one that is always
/// right, alone or in company, with prefixes that others have read and with too little memory.
#[test]
fn a_draft_model_changes_no_bit() {
    let start = |small: bool, options: EngineOptions| {
        Engine::start_with_draft(checkpoint(true, DType::F32), checkpoint(!small, DType::F32), options).unwrap()
    };
    let one = engine(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
    let mut requests = crowd(9, 18, one.config().vocab_size);
    requests[4].stop = vec!["e".into()];
    requests[5].ignore_eos = false;
    let expected: Vec<_> = requests.iter().map(|r| ask(&one, r.clone())).collect();
    let context = 13 * wudao_device::PAGE;
    let page = pages(one.config(), 1) + pages(&checkpoint(false, DType::F32).config, 1);
    for (small, guesses, batch, room) in [(true, 0, 1, 100), (true, 5, 6, 100), (false, 6, 4, 100), (false, 8, 8, 14)] {
        let cache_bytes = page * room;
        let options = EngineOptions { context, guesses, batch, cache_bytes, ..EngineOptions::default() };
        let engine = start(small, options.clone());
        let streams: Vec<_> = requests.iter().map(|r| self::start(&engine, r.clone())).collect();
        for ((_ticket, rx), expected) in streams.into_iter().zip(&expected) {
            assert_eq!(&told(rx.into_iter().collect()), expected, "{options:?}");
        }
        let counters = at_rest(&engine).counters;
        assert!(counters.guessed >= counters.guessed_right && counters.guessed > 0, "{counters:?}");
        assert!(counters.cached_tokens > 0 && (counters.preemptions > 0) == (room < 20), "{counters:?}");
    }
}

/// A model that guesses for itself is always right, at any temperature, whatever the penalties: its sampler is a copy of the
/// one that draws, and its keys and values are those of the same tokens.
#[test]
fn a_model_knows_what_it_will_say_itself() {
    let own = || checkpoint(true, DType::F32);
    for (batch, room) in [(1, 100), (3, 100), (6, 15)] {
        let context = 13 * wudao_device::PAGE;
        let cache_bytes = 2 * pages(&own().config, room);
        let options = EngineOptions { context, guesses: 6, batch, cache_bytes, ..EngineOptions::default() };
        let engine = Engine::start_with_draft(own(), own(), options).unwrap();
        let requests = crowd(11, 12, engine.config().vocab_size);
        let streams: Vec<_> = requests.iter().map(|r| start(&engine, r.clone())).collect();
        let written: usize =
            streams.into_iter().map(|(_ticket, rx)| ids(&rx.into_iter().collect::<Vec<_>>()).len()).sum();
        let counters = at_rest(&engine).counters;
        assert_eq!(counters.completion_tokens as usize, written);
        assert!(counters.guessed_right == counters.guessed && counters.guessed > 0, "{counters:?}");
        assert_eq!(counters.guessed_share(), Some(1.0));
        // Alone, all but one token of seven are guessed.
        assert!(batch > 1 || counters.guessed as usize * 10 > written * 7, "{counters:?}");
    }
}

#[test]
fn a_draft_model_must_fit() {
    let large = || checkpoint(true, DType::F32);
    let refused = |draft: Checkpoint<Cpu>, options: EngineOptions| {
        Engine::start_with_draft(large(), draft, options).err().unwrap().to_string()
    };
    let size = wudao_data::tokenizer::MIN_VOCAB_SIZE + 1;
    let tokenizer = |text: &str| Tokenizer::train([text], &wudao_data::tokenizer::TrainOptions::new(size)).unwrap();
    let (one, other) = (tokenizer(&"ab".repeat(50)), tokenizer(&"cd".repeat(50)));
    assert_eq!((one.vocab_size(), other.vocab_size()), (size, size));
    assert_eq!((drafter::differs(&one, &one), drafter::differs(&one, &other).is_some()), (None, true));
    let smaller = Checkpoint { tokenizer: one, ..large() };
    assert!(refused(smaller, EngineOptions::default()).contains("same tokenizer"));
    let mut short = large();
    short.config.max_position_embeddings = 100;
    let why = refused(short, EngineOptions { context: 200, ..EngineOptions::default() });
    assert!(why.contains("100") && why.contains("200"), "{why}");
}

#[test]
fn a_second_turn_reads_only_what_is_new() {
    let engine = engine(EngineOptions::default());
    let first = ask(&engine, request((0..40).collect(), 30));
    let mut history: Vec<u32> = (0..40).chain(ids(&first)).collect();
    history.extend([9, 9, 9]);
    let second = ask(&engine, request(history.clone(), 20));
    // 69 tokens are in the cache (the last was written, not read): four pages.
    assert_eq!(done(&second).2, Usage { prompt_tokens: 73, cached_tokens: 64, completion_tokens: 20 });
    let cold = self::engine(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
    assert_eq!(told(second), ask(&cold, request(history, 20)));
}

#[test]
fn clients_take_turns_and_the_queue_has_an_end() {
    let engine = engine(EngineOptions { batch: 1, queue: 4, ..EngineOptions::default() });
    // One that holds the thread until all have asked.
    let (open, gate) = mpsc::channel::<()>();
    let (busy, started) = mpsc::channel();
    let hold = move |_| busy.send(()).is_err() || gate.recv().is_err();
    let _held = engine.submit(request(vec![1], 1), Box::new(hold)).unwrap();
    started.recv().unwrap();
    let (tx, rx) = mpsc::channel();
    let mut tickets = vec![];
    let mut refused = 0;
    for client in [1, 1, 1, 2, 3, 3] {
        let tx = tx.clone();
        let sink = move |e| !matches!(e, Event::Done { .. }) || tx.send(client).is_ok();
        match engine.submit(Request { client, ..request(vec![1, 2, 3], 100) }, Box::new(sink)) {
            Ok(ticket) => tickets.push(ticket),
            Err(Rejected::QueueFull { waiting: 4 }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    drop((tx, open));
    assert_eq!(refused, 2);
    assert_eq!(rx.into_iter().collect::<Vec<u64>>(), [1, 2, 1, 1]);
}

/// Whoever writes has a token in every step, however long the prompts are that others bring.
#[test]
fn a_stream_goes_on_while_a_long_prompt_is_read() {
    let engine = engine(EngineOptions { prefill_chunk: 16, ..EngineOptions::default() });
    let (open, gate) = mpsc::channel::<()>();
    let (log, told) = mpsc::channel();
    let (writes, reads) = (log.clone(), log);
    let mut first = true;
    // Holds the thread at its first token until the long prompt has come.
    let write = move |event| {
        if std::mem::take(&mut first) && gate.recv().is_err() {
            return false;
        }
        !matches!(event, Event::Token { .. }) || writes.send("writes").is_ok()
    };
    let _stream = engine.submit(request(vec![1, 2], 100), Box::new(write)).unwrap();
    let read = move |event| !matches!(event, Event::Token { .. }) || reads.send("has read").is_ok();
    let _long = engine.submit(request(vec![3; 200], 1), Box::new(read)).unwrap();
    open.send(()).unwrap();
    let told: Vec<&str> = told.into_iter().collect();
    let before = told.iter().position(|&who| who == "has read").unwrap();
    // 200 tokens are thirteen chunks, and the stream's first token was there before.
    assert!(before >= 13, "{before} tokens while the prompt was read");
    assert_eq!(told.len(), 101);
}

#[test]
fn shutdown_gives_grace_and_then_fails() {
    let engine = engine(EngineOptions { batch: 2, ..EngineOptions::default() });
    let streams: Vec<_> = (0..4).map(|_| start(&engine, request(vec![1], 200))).collect();
    engine.shutdown(Duration::from_secs(60));
    assert!(streams.into_iter().all(|(_ticket, rx)| done(&rx.into_iter().collect::<Vec<_>>()).0 == Stop::MaxTokens));
    let engine = self::engine(EngineOptions { batch: 2, ..EngineOptions::default() });
    let streams: Vec<_> = (0..4).map(|_| start(&engine, request(vec![1], 250))).collect();
    engine.shutdown(Duration::ZERO);
    for (_ticket, rx) in streams {
        assert!(matches!(rx.into_iter().last(), Some(Event::Failed(why)) if why.contains("shut down")));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
    /// Readers that leave at any moment, in any way, leave nothing behind.
    #[test]
    fn nothing_is_left_behind(
        seed: u64, batch in 1usize..8, room in 13usize..40, prefix_cache: bool, leave in proptest::collection::vec(0usize..40, 20),
    ) {
        let own = checkpoint(true, DType::F32);
        let cache_bytes = pages(&own.config, room);
        let context = 13 * wudao_device::PAGE;
        let options = EngineOptions { context, batch, prefix_cache, cache_bytes, prefill_chunk: 48, ..Default::default() };
        let engine = Engine::start(own, options).unwrap();
        let mut tickets = vec![];
        let (tx, rx) = mpsc::channel();
        for (i, (request, leave)) in crowd(seed, 20, engine.config().vocab_size).into_iter().zip(leave).enumerate() {
            let (mut events, tx) = (0, tx.clone());
            let sink = move |e| {
                events += 1;
                matches!(e, Event::Done { .. }) && tx.send(()).is_ok() || events != leave
            };
            let ticket = engine.submit(request, Box::new(sink)).unwrap();
            if i % 3 == 0 && leave < 20 { drop(ticket) } else { tickets.push(ticket) }
        }
        drop(tx);
        // All sinks are gone when all requests are.
        let finished = rx.into_iter().count() as u64;
        let other = engine.clone();
        engine.shutdown(Duration::from_secs(60));
        let Status { running, waiting, cache_used, counters, .. } = other.status();
        proptest::prop_assert_eq!((running, waiting, cache_used, counters.failed), (0, 0, 0, 0));
        proptest::prop_assert_eq!(counters.cancelled + counters.max_tokens + counters.context, 20);
        proptest::prop_assert!(finished <= counters.max_tokens + counters.context);
        proptest::prop_assert_eq!(other.shared().taken.load(Ordering::Acquire), 0);
    }
}

/// A form is kept, and keeping it changes nothing for others, nor others for it: not the company, nor guesses, nor having been
/// thrown out.
#[test]
fn forms_are_kept_in_any_company() {
    let limits = |room| {
        let config = crate::testing::config(true, 320);
        EngineOptions { context: 13 * wudao_device::PAGE, cache_bytes: pages(&config, room), ..Default::default() }
    };
    let forms = [
        Form::Regex("([0-9]{2},){1,20}床".into()),
        Form::Json(serde_json::json!({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 9})),
        Form::Lark("start: \"<\" start \">\" | /[a-z]/".into()),
    ];
    let requests = |engine: &Engine| -> Vec<Request> {
        let constraints: Vec<_> = forms.iter().map(|form| engine.constrain(form).unwrap()).collect();
        let mut crowd = crowd(11, 18, engine.config().vocab_size);
        for (i, request) in crowd.iter_mut().enumerate().filter(|(i, _)| i % 4 > 0) {
            request.constraint = Some(constraints[i % 4 - 1].clone());
            request.prompt = [5, 6, 7, 8].repeat(1 + i);
            (request.max_tokens, request.ignore_eos) = (60, i % 2 == 0);
        }
        crowd
    };
    let one = engine(EngineOptions { batch: 1, prefix_cache: false, ..limits(1000) });
    let alone: Vec<_> = requests(&one).into_iter().map(|request| ask(&one, request)).collect();
    let mut whole = 0;
    for (i, events) in alone.iter().enumerate().filter(|(i, _)| i % 4 > 0) {
        let (text, stop) = (text(events), done(events).0);
        if stop != Stop::EndOfText {
            continue;
        }
        whole += 1;
        match i % 4 {
            1 => {
                let numbers = text.strip_suffix(",床").unwrap();
                assert!(numbers.split(',').all(|n| n.len() == 2 && n.bytes().all(|b| b.is_ascii_digit())), "{text}");
            }
            2 => {
                let list: Vec<String> = serde_json::from_str(&text).unwrap();
                assert!((1..=9).contains(&list.len()) && list.iter().all(|item| item == "a" || item == "b"), "{text}");
            }
            _ => {
                let inner = text.trim_matches(['<', '>']);
                let depth = text.len() / 2;
                assert_eq!(text, format!("{}{inner}{}", "<".repeat(depth), ">".repeat(depth)));
                assert!(inner.len() == 1 && inner.as_bytes()[0].is_ascii_lowercase(), "{text}");
            }
        }
    }
    assert!(whole > 4, "{whole} came to their end");
    for (batch, guesses, room) in [(16, 0, 1000), (7, 5, 1000), (18, 3, 14)] {
        let together = engine(EngineOptions { batch, guesses, ..limits(room) });
        let streams: Vec<_> = requests(&together).into_iter().map(|request| start(&together, request)).collect();
        for ((_ticket, rx), alone) in streams.into_iter().zip(&alone) {
            assert_eq!(&told(rx.into_iter().collect()), alone, "{batch} {guesses} {room}");
        }
        let counters = at_rest(&together).counters;
        assert_eq!((counters.failed, counters.preemptions > 0), (0, room < 100));
        assert!(guesses == 0 || counters.guessed_right > 0);
    }
}

#[test]
fn a_form_may_name_special_tokens_or_be_empty() {
    let engine = engine(EngineOptions::default());
    let constraint = engine.constrain(&Form::Lark("start: <|im_start|> \"a\"".into())).unwrap();
    let events = ask(&engine, Request { constraint: Some(constraint), ..request(vec![3], 9) });
    let im_start = engine.tokenizer().id("<|im_start|>").unwrap();
    assert_eq!((ids(&events)[0], text(&events), done(&events).0), (im_start, "a".into(), Stop::EndOfText));
    let empty = engine.constrain(&Form::Text(String::new())).unwrap();
    let events = ask(&engine, Request { constraint: Some(empty), ..request(vec![3], 9) });
    assert_eq!((ids(&events).len(), done(&events).0), (0, Stop::EndOfText));
    assert!(engine.constrain(&Form::Regex("(".into())).is_err());
    assert_eq!(at_rest(&engine).counters.failed, 0);
}
