use serde_json::json;

use super::*;

fn pod(name: &str, uid: &str, created: &str, address: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "creationTimestamp": created},
        "spec": {},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }))
    .unwrap()
}

fn cart(n: u32) -> Pod {
    pod(
        &format!("cart-{n}"),
        &format!("uid-{n}"),
        "2026-01-02T03:04:05Z",
        "10.0.0.2",
    )
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store
        .known(Instant::now())
        .iter()
        .map(|known| known.owner.pod.clone())
        .collect();
    names.sort();
    names
}

#[test]
fn a_list_counts_only_when_it_is_complete() {
    let mut store = Store::default();
    store.take(Event::Init);
    store.take(Event::InitApply(cart(1)));
    assert!(!store.listed && store.known(Instant::now()).is_empty());
    store.take(Event::InitDone);
    assert_eq!(names(&store), ["cart-1"]);
    // A list anew, after a 410: what is not in it is gone, what is stays all the while.
    store.take(Event::Init);
    store.take(Event::InitApply(cart(2)));
    assert_eq!(names(&store), ["cart-1"]);
    // The connection broke in the middle of the list; the next one begins anew.
    store.take(Event::Init);
    store.take(Event::InitApply(cart(3)));
    store.take(Event::InitDone);
    assert_eq!(names(&store), ["cart-3"]);
}

#[test]
fn only_what_matters_wakes_the_resolver() {
    let mut store = Store::default();
    store.take(Event::Apply(cart(1)));
    let version = store.version;
    store.take(Event::Apply(cart(1)));
    assert_eq!(store.version, version);
    store.take(Event::Delete(cart(2)));
    assert_eq!(store.version, version);
    store.take(Event::Delete(cart(1)));
    assert_eq!(
        (store.version, store.known(Instant::now()).len()),
        (version + 1, 0)
    );
}

/// Jobs that are done keep their objects for days.
#[test]
fn a_pod_that_is_over_is_gone_after_a_minute_however_long_its_object_stays() {
    let done = |n| {
        let mut pod = cart(n);
        pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        pod
    };
    let mut store = Store::default();
    store.take(Event::Apply(cart(1)));
    store.take(Event::Apply(cart(2)));
    let version = store.version;
    store.take(Event::Apply(done(2)));
    assert_eq!(store.version, version + 1);
    let seen = Instant::now();
    let known = |store: &Store, at| store.known(at).len();
    assert_eq!(known(&store, seen), 2, "what it did last may be read late");
    // Nothing new comes of it: it is time that ends it.
    assert_eq!(known(&store, seen + OVER), 1);
    // Neither another word of it nor a list anew is a new end.
    let since = |store: &Store| store.pods["uid-2"].over;
    let over = since(&store);
    store.take(Event::Apply(done(2)));
    assert_eq!((store.version, since(&store)), (version + 1, over));
    let mut ending = done(2);
    ending.metadata.deletion_timestamp = ending.metadata.creation_timestamp.clone();
    store.take(Event::Apply(ending));
    assert_eq!((store.version, since(&store)), (version + 2, over));
    store.take(Event::Init);
    store.take(Event::InitApply(cart(1)));
    store.take(Event::InitApply(done(2)));
    store.take(Event::InitDone);
    assert_eq!(since(&store), over);
    assert_eq!(known(&store, seen + OVER), 1);
    // One that was made anew under a uid of its own is another.
    store.take(Event::Apply(cart(3)));
    assert_eq!(known(&store, seen + OVER), 2);
}

#[test]
fn the_younger_of_two_has_the_address() {
    let mut store = Store::default();
    store.take(Event::Apply(pod(
        "old",
        "a",
        "2026-01-02T03:04:05Z",
        "10.0.0.2",
    )));
    store.take(Event::Apply(pod(
        "new",
        "b",
        "2026-01-02T03:04:06Z",
        "10.0.0.2",
    )));
    assert_eq!(store.known(Instant::now())[0].owner.pod, "new");
    // And one that is to end loses it in any case.
    let mut ending = pod("new", "b", "2026-01-02T03:04:06Z", "10.0.0.2");
    ending.metadata.deletion_timestamp = ending.metadata.creation_timestamp.clone();
    store.take(Event::Apply(ending));
    assert_eq!(store.known(Instant::now())[0].owner.pod, "old");
}

#[test]
fn a_failure_stands_until_the_server_is_heard_again() {
    let shared = Shared::default();
    shared.store().take(Event::Init);
    shared.store().take(Event::InitDone);
    let mut source = Kubernetes {
        shared: Arc::new(shared),
        told: 0,
        task: tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .spawn(async {}),
    };
    assert!(source.has_changed());
    assert!(source.pods(false).is_ok());
    assert!(!source.has_changed());
    source.shared.fail(&anyhow!("cut \u{1b}[31moff"));
    // What was there stays, and what was heard before it went is told.
    source.shared.store().take(Event::Apply(cart(2)));
    assert_eq!(source.pods(false).unwrap().len(), 1);
    assert!(!source.has_changed());
    assert_eq!(source.complaint(), "cut \\u{1b}[31moff");
    source.shared.hear();
    assert_eq!(source.complaint(), "");
}
