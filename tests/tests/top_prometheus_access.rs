//! `tracer top --prometheus` where the server is none, wants to know who asks, leads elsewhere or does
//! not answer: each says what failed, on what, and what to do, and no secret shows.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tests::Prometheus;
use tests::process::{run, tracer};

const LIMIT: Duration = Duration::from_secs(15);

fn top(arguments: &[&str]) -> Command {
    let mut command = tracer();
    command.args(["top", "--once"]).args(arguments);
    command
}

/// Answers every request with the same bytes, after this long; remembers what was asked.
fn answering(answer: String, after: Duration) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let noting = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            noting.lock().expect("no request panics").push(text);
            thread::sleep(after);
            // A client that has gone is what some of these are about.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    (format!("http://{address}"), asked)
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn what_is_no_prometheus_is_said_with_what_to_do() {
    let json = "application/json";
    let error = r#"{"status":"error","errorType":"execution","error":"too many samples"}"#;
    let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    let empty = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    let cases: [(&str, &str, &str, &[&str]); 11] = [
        (
            "401 Unauthorized",
            "text/plain",
            "no org id",
            &["401", "no org id", "X-Scope-OrgID"],
        ),
        (
            "403 Forbidden",
            json,
            error,
            &["403", "--bearer-token-file"],
        ),
        (
            "404 Not Found",
            "text/plain",
            "404 page not found",
            &["404", "/prometheus"],
        ),
        (
            "200 OK",
            "text/html",
            "<html>\u{1b}[31mlog in",
            &["no JSON", "log in", "\\u{1b}"],
        ),
        ("200 OK", json, "{\"status\": ", &["JSON that is no answer"]),
        ("200 OK", json, "[]", &["JSON that is no answer"]),
        ("200 OK", json, matrix, &["matrix"]),
        (
            "422 Unprocessable Entity",
            json,
            error,
            &["422", "too many samples", "--range"],
        ),
        (
            "503 Service Unavailable",
            "text/plain",
            "Service Unavailable",
            &["503"],
        ),
        ("500 Internal Server Error", "text/plain", "", &["500"]),
        (
            "200 OK",
            json,
            empty,
            &["no agent of tracer", "tracer_build_info"],
        ),
    ];
    for (status, kind, body, words) in cases {
        let (url, _) = answering(response(status, kind, body), Duration::ZERO);
        let all = [words, &[&url]].concat();
        run(&mut top(&["--prometheus", &url]), LIMIT).assert_refused(1, &all);
    }
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_owned();
    let (url, _) = answering(half, Duration::ZERO);
    run(&mut top(&["--prometheus", &url]), LIMIT).assert_refused(1, &["broke off", &url]);
    let (url, _) = answering("220 mail ready\r\n".to_owned(), Duration::ZERO);
    run(&mut top(&["--prometheus", &url]), LIMIT).assert_refused(1, &["no answer from", &url]);
    let (url, _) = answering(response("200 OK", json, empty), LIMIT);
    let slow = ["--prometheus", &url, "--timeout", "300ms"];
    run(&mut top(&slow), LIMIT).assert_refused(1, &["within 300ms", &url]);
    let nobody = format!("http://{}", tests::agent::free_address());
    run(&mut top(&["--prometheus", &nobody]), LIMIT)
        .assert_refused(1, &["refused", &nobody, "port-forward"]);
    let nowhere = ["--prometheus", "http://prometheus.invalid:9090"];
    run(&mut top(&nowhere), LIMIT).assert_refused(1, &["prometheus.invalid:9090"]);
}

#[test]
fn redirections_are_followed_without_secrets_to_strangers() {
    let empty = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    let (other, asked) = answering(
        response("200 OK", "application/json", empty),
        Duration::ZERO,
    );
    let to = |place: &str| {
        format!(
            "HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
    };
    let (url, first) = answering(to(&format!("{other}/there?x=y")), Duration::ZERO);
    let secret = [
        "--bearer-token",
        "s3cret",
        "--header",
        "X-Scope-OrgID: shop",
    ];
    let ended = run(top(&["--prometheus", &url]).args(secret), LIMIT);
    ended.assert_refused(1, &["no agent of tracer"]);
    let text = |asked: &Arc<Mutex<Vec<String>>>| asked.lock().expect("no panic").join("\n");
    let first = text(&first).to_lowercase();
    assert!(first.contains("authorization: bearer s3cret"), "{first}");
    assert!(first.contains("x-scope-orgid: shop"), "{first}");
    assert!(text(&asked).contains("GET /there?x=y"), "{}", text(&asked));
    assert!(!text(&asked).contains("s3cret"), "{}", text(&asked));
    let (around, _) = answering(to("/again"), Duration::ZERO);
    run(&mut top(&["--prometheus", &around]), LIMIT)
        .assert_refused(1, &["redirects more than 5 times", "/again"]);
}

#[test]
fn secrets_come_by_file_and_variable_and_show_nowhere() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("token");
    std::fs::write(&path, "s3cret-in-file\n").expect("files can be written");
    let path = path.to_str().expect("path is text");
    let refusal = response("401 Unauthorized", "text/plain", "");
    let (url, asked) = answering(refusal, Duration::ZERO);
    let sent = || asked.lock().expect("no panic").join("\n").to_lowercase();
    let debug = ["--log-level", "trace"];
    let mut by_file = top(&["--prometheus", &url, "--bearer-token-file", path]);
    let mut by_variable = top(&["--prometheus", &url]);
    by_variable.env("TRACER_BEARER_TOKEN", "s3cret-in-variable");
    let with_user = url.replace("http://", "http://me:s3cret-in-url@");
    let mut by_url = top(&["--prometheus", &with_user]);
    for (command, header) in [
        (&mut by_file, "bearer s3cret-in-file"),
        (&mut by_variable, "bearer s3cret-in-variable"),
        (&mut by_url, "basic bwu6cznjcmv0lwlulxvyba=="),
    ] {
        let ended = run(command.args(debug), LIMIT);
        assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
        assert!(ended.stderr.contains("401"), "{ended:#?}");
        assert!(!ended.stderr.contains("s3cret"), "{ended:#?}");
        assert!(sent().contains(header), "{header} in {}", sent());
    }
    let help = run(
        tracer()
            .args(["top", "--help"])
            .env("TRACER_BEARER_TOKEN", "s3cret"),
        LIMIT,
    );
    assert!(!help.stdout.contains("s3cret"), "{}", help.stdout);
    let refused = |arguments: &[&str], words: &[&str]| {
        let ended = run(top(&["--prometheus", &url]).args(arguments), LIMIT);
        ended.assert_refused(2, words);
        assert!(!ended.stderr.contains("s3cret"), "{ended:#?}");
    };
    refused(
        &["--bearer-token-file", "/nonexistent/t"],
        &["bearer-token-file", "/nonexistent/t"],
    );
    refused(
        &["--bearer-token", "s3cret", "--bearer-token-file", path],
        &["bearer-token"],
    );
    refused(&["--header", "s3cret"], &["header", "NAME:VALUE"]);
    refused(&["--match", "cluster"], &["match", "cluster"]);
    refused(&["--sort", "p99"], &["sort", "oddness"]);
    refused(&["--agent", "unix:/a"], &["prometheus", "agent"]);
    run(&mut top(&["--prometheus", "prometheus:9090"]), LIMIT)
        .assert_refused(2, &["prometheus", "http://HOST:PORT"]);
    run(&mut top(&["--output", "json"]), LIMIT).assert_refused(2, &["output", "--prometheus"]);
}

#[test]
fn a_prefix_is_part_of_the_url() {
    let flags = ["--web.route-prefix=/prometheus"];
    let prometheus = Prometheus::start_with("[]", &[], &flags);
    for slash in ["", "/"] {
        let url = format!("{}{slash}", prometheus.url());
        run(&mut top(&["--prometheus", &url]), LIMIT)
            .assert_refused(1, &["no agent of tracer", "/prometheus"]);
    }
    let bare = format!("http://{}", prometheus.address());
    run(&mut top(&["--prometheus", &bare]), LIMIT).assert_refused(1, &["404", "prefix"]);
}
