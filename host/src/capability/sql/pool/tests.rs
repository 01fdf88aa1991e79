use super::*;

/// A connection with a name, at home in a runtime or nowhere.
#[derive(Debug, PartialEq, Eq)]
struct Named(&'static str, Option<Id>);

impl Kept for Named {
    fn home(&self) -> Option<Id> {
        self.1
    }
}

const fn any(name: &'static str) -> Named {
    Named(name, None)
}

/// Another runtime than that of the test.
fn elsewhere() -> Option<Id> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let id = runtime.handle().id();
    // Its drop would wait for it, which must not be done here.
    runtime.shutdown_background();
    Some(id)
}

/// Waits at a runtime, and does not give up by itself.
fn wait_at(pool: &Arc<Pool<Named>>, at: Option<Id>) -> oneshot::Receiver<Place<Named>> {
    pool.state().wait(at)
}

fn got(waiting: &mut oneshot::Receiver<Place<Named>>) -> Option<&'static str> {
    waiting.try_recv().ok()?.take_idle().map(|connection| connection.0)
}

async fn take(pool: &Arc<Pool<Named>>) -> Place<Named> {
    pool.place(Duration::ZERO).await.expect("a place")
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_put_back_is_found_again_and_one_that_is_dropped_is_not() {
    let pool = Pool::new(1);
    let mut place = take(&pool).await;
    assert_eq!(place.take_idle(), None);
    place.with(any("first")).put_back();
    assert_eq!(pool.count(), (0, 1));

    let mut place = take(&pool).await;
    let connection = place.take_idle().expect("the first");
    assert_eq!(pool.count(), (1, 0));
    drop(place.with(connection));
    assert_eq!(pool.count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_not_used_is_free_again_with_its_connection() {
    let pool = Pool::new(1);
    drop(take(&pool).await);
    assert_eq!(pool.count(), (0, 0));
    take(&pool).await.with(any("first")).put_back();
    drop(take(&pool).await);
    assert_eq!(pool.count(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_waits_for_its_time_and_no_longer() {
    let pool = Pool::new(1);
    let used = take(&pool).await.with(any("only"));
    assert!(pool.place(Duration::from_secs(1)).await.is_none());
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.place(Duration::from_secs(1)).await.and_then(|mut place| place.take_idle()) }
    });
    tokio::task::yield_now().await;
    used.put_back();
    assert_eq!(waiting.await.expect("no panic"), Some(any("only")));
    assert_eq!(pool.count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_place_of_a_connection_that_is_closed() {
    let pool = Pool::new(1);
    let used = take(&pool).await.with(any("only"));
    let mut waiting = wait_at(&pool, here());
    drop(used);
    let mut place = waiting.try_recv().expect("a place");
    assert_eq!((place.take_idle(), pool.count()), (None, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_is_passed_over_even_if_a_place_is_on_its_way_to_it() {
    let pool = Pool::new(1);
    let used = take(&pool).await.with(any("only"));
    let (gone, late, mut waiting) = (wait_at(&pool, None), wait_at(&pool, None), wait_at(&pool, None));
    drop(gone);
    used.put_back();
    assert_eq!(got(&mut waiting), None);
    drop(late);
    assert_eq!(got(&mut waiting), Some("only"));
    assert_eq!(pool.count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_who_have_given_up_take_no_room() {
    let pool = Pool::new(1);
    let _used = take(&pool).await.with(any("only"));
    (0..1000).for_each(|_| drop(wait_at(&pool, None)));
    assert!(pool.state().waiting.capacity() < 10);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_the_own_runtime_is_preferred_to_the_last_one() {
    let pool = Pool::new(3);
    let homes = [("own", here()), ("foreign", elsewhere())];
    let mut used = Vec::new();
    for (name, home) in homes {
        used.push(take(&pool).await.with(Named(name, home)));
    }
    used.into_iter().for_each(Pooled::put_back);
    let (mut one, mut other) = (take(&pool).await, take(&pool).await);
    let names = [&mut one, &mut other].map(|place| place.take_idle().map(|connection| connection.0));
    assert_eq!(names, [Some("own"), Some("foreign")]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_to_who_waits_at_its_home_first_but_not_past_one_who_waits_much_longer() {
    let pool = Pool::new(1);
    let used = take(&pool).await.with(Named("own", here()));
    let (mut foreign, mut own) = (wait_at(&pool, elsewhere()), wait_at(&pool, here()));
    used.put_back();
    let mut place = own.try_recv().expect("it is at home there");
    let connection = place.take_idle().expect("the connection");

    let long_ago = Instant::now().checked_sub(SQL_OVERTAKE_MAX * 2).expect("a moment");
    pool.state().waiting.front_mut().expect("the foreign one").since = long_ago;
    let mut own = wait_at(&pool, here());
    place.with(connection).put_back();
    let mut place = foreign.try_recv().expect("it has waited for much longer");
    assert!(own.try_recv().is_err());
    let connection = place.take_idle().expect("the connection");
    place.with(connection).put_back();
    assert_eq!(got(&mut own), Some("own"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_home_goes_to_who_has_waited_longest() {
    let pool = Pool::new(1);
    let used = take(&pool).await.with(any("only"));
    let (mut first, mut second) = (wait_at(&pool, elsewhere()), wait_at(&pool, here()));
    used.put_back();
    assert_eq!(got(&mut second), None);
    assert_eq!(got(&mut first), Some("only"));
}
